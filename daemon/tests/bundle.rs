//! The bundle format against everything that is not a good bundle.

#![expect(clippy::unwrap_used, reason = "a test may be blunt")]

mod bundles;

use std::fs;
use std::path::Path;

use bundles::{Member, Signer, archive, manifest, member, signed};
use pawlatch::bundle::{self, BundleError, Kind, Manifest, Trust, Version};
use tempfile::TempDir;

const FILES: [(&str, &[u8]); 2] = [("model.toml", b"name"), ("net.onnx", b"weights")];

fn good(signer: &Signer) -> Vec<Member> {
    signed(signer, &manifest("yard", "1.2.0", &FILES), &FILES)
}

fn unpack(bytes: &[u8], trust: &Trust) -> (TempDir, Result<Manifest, BundleError>) {
    let dir = TempDir::new().unwrap();
    let unpacked = bundle::unpack(bytes, trust, dir.path());
    (dir, unpacked)
}

#[track_caller]
fn refused(members: &[Member], trust: &Trust, told: &str) {
    let (dir, unpacked) = unpack(&archive(members), trust);
    let error = unpacked.expect_err("it was believed").to_string();
    assert!(error.contains(told), "{error}");
    // Nothing outside the directory, whatever the names said.
    assert!(!dir.path().parent().unwrap().join("evil").exists());
    assert!(!Path::new("/tmp/evil").exists());
}

#[test]
fn a_signed_bundle_is_unpacked_and_can_be_verified_again() {
    let signer = Signer::new(1);
    let (dir, unpacked) = unpack(&archive(&good(&signer)), &signer.trust());
    let unpacked = unpacked.unwrap();
    assert_eq!((unpacked.name.as_str(), unpacked.kind), ("yard", Kind::Model));
    for (name, bytes) in FILES {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), bytes);
    }
    assert_eq!(bundle::verify_dir(dir.path(), &signer.trust()).unwrap(), unpacked);
    // Packed again it is the same bundle, the same bytes every time.
    let pack = || {
        let mut out = Vec::new();
        bundle::pack(dir.path(), &mut out).unwrap();
        out
    };
    let packed = pack();
    assert_eq!(packed, pack());
    assert_eq!(unpack(&packed, &signer.trust()).1.unwrap(), unpacked);
    // A byte that rots on the disk is noticed.
    fs::write(dir.path().join("net.onnx"), b"weightz").unwrap();
    let rotten = bundle::verify_dir(dir.path(), &signer.trust()).unwrap_err();
    assert!(rotten.to_string().contains("net.onnx"), "{rotten}");
    assert!(bundle::verify_dir(dir.path(), &Signer::new(2).trust()).is_err());
}

#[test]
fn a_signature_made_by_minisign_itself_is_believed() {
    // minisign 0.11: minisign -G -W; printf 'paw\n' > bundle.toml; minisign -S -m bundle.toml
    let key = minisign_verify::PublicKey::from_base64(MINISIGN_KEY).unwrap();
    let signature = minisign_verify::Signature::decode(MINISIGN_SIGNATURE).unwrap();
    key.verify(b"paw\n", &signature, false).unwrap();
    assert!(key.verify(b"claw\n", &signature, false).is_err());
}

#[test]
fn who_is_not_trusted_is_refused() {
    let signer = Signer::new(1);
    let trust = signer.trust();
    let stranger = Signer::new(2);
    refused(&good(&stranger), &trust, "not by any trusted key");
    refused(&good(&signer), &Trust::default(), "no key is trusted");
    let unsigned: Vec<Member> =
        good(&signer).into_iter().filter(|m| m.name != bundle::SIGNATURE_FILE.as_bytes()).collect();
    refused(&unsigned, &trust, "not signed");
    // The signature of something else; one of old, without hashing; and no signature at all.
    let text = toml::to_string(&manifest("yard", "1.2.0", &FILES)).unwrap();
    for signature in [signer.sign("paw"), signer.sign_as_of_old(&text), "paw".to_owned()] {
        let mut members = good(&signer);
        members[1].bytes = signature.into_bytes();
        refused(&members, &trust, "not by any trusted key, or does not fit");
    }
    let mut members = good(&signer);
    members[0].bytes = text.replace("1.2.0", "9.9.9").into_bytes();
    refused(&members, &trust, "does not fit");
    // Whoever knows the hash of the whole needs no signature, but a stranger's is still refused.
    let pinned = |keys: Trust| Trust { pinned: Some("checked where it is fetched".into()), ..keys };
    assert!(unpack(&archive(&unsigned), &pinned(trust.clone())).1.is_ok());
    assert!(unpack(&archive(&unsigned), &pinned(Trust::default())).1.is_ok());
    refused(&good(&stranger), &pinned(trust), "not by any trusted key");
}

#[test]
fn what_is_not_exactly_what_was_signed_is_refused() {
    let signer = Signer::new(1);
    let trust = signer.trust();
    let change = |change: fn(&mut Vec<Member>)| {
        let mut members = good(&signer);
        change(&mut members);
        members
    };
    refused(&change(|m| m[3].bytes = b"weightz".to_vec()), &trust, "net.onnx is not the one");
    refused(&change(|m| m[3].bytes = b"more weights".to_vec()), &trust, "12 bytes");
    refused(&change(|m| drop(m.pop())), &trust, "nothing where net.onnx");
    refused(&change(|m| m.swap(2, 3)), &trust, "`net.onnx` where model.toml");
    refused(&change(|m| m.push(member("extra", "x"))), &trust, "extra where its end");
    refused(&change(|m| drop(m.remove(0))), &trust, "where bundle.toml must be");
    refused(&change(|m| m.clear()), &trust, "nothing where bundle.toml");
    // A file that is none, and names that lead astray.
    for kind in [
        tar::EntryType::Symlink,
        tar::EntryType::Link,
        tar::EntryType::Directory,
        tar::EntryType::Fifo,
        tar::EntryType::GNUSparse,
    ] {
        let mut members = good(&signer);
        members[3].kind = kind;
        refused(&members, &trust, "no regular file");
    }
    for name in ["../evil", "/tmp/evil", "a/../../evil", "./net.onnx", "net.onnx/", "\x07"] {
        let mut members = good(&signer);
        members[3].name = name.into();
        refused(&members, &trust, "where net.onnx must be");
    }
    // A long name comes as an entry of its own, which could be of any size.
    let mut members = good(&signer);
    let mut long = member("././@LongLink", vec![b'a'; 100_000]);
    long.kind = tar::EntryType::GNULongName;
    members.insert(2, long);
    refused(&members, &trust, "@LongLink");
}

#[test]
fn a_manifest_that_is_signed_but_wrong_is_refused() {
    let signer = Signer::new(1);
    let refused_text = |text: &str, told: &str| {
        let members = [
            member(bundle::MANIFEST_FILE, text),
            member(bundle::SIGNATURE_FILE, signer.sign(text)),
            member("model.toml", "name"),
        ];
        refused(&members, &signer.trust(), told);
    };
    let good = toml::to_string(&manifest("yard", "1.2.0", &FILES)).unwrap();
    let edited = |from: &str, to: &str| {
        assert!(good.contains(from), "{good}");
        good.replacen(from, to, 1)
    };
    refused_text(&edited("bundle = 1", "bundle = 2"), "format 2");
    refused_text(&edited("bundle = 1\n", ""), "must be the number of its format");
    refused_text(&edited("bundle = 1", "bundle = 1\npaw = 2"), "paw");
    refused_text(&edited("1.2.0", "1.2.0-beta"), "no version");
    refused_text(&edited("\"yard\"", "\"../yard\""), "`name`");
    refused_text(&edited("\"model.toml\"", "\"../model.toml\""), "file name");
    refused_text(&edited("\"model.toml\"", "\".lock\""), "file name");
    refused_text(&edited("\"model.toml\"", "\"bundle.toml\""), "file name");
    refused_text(&edited("\"model.toml\"", "\"net.onnx\""), "file name");
    refused_text(&edited("kind = \"model\"", "kind = \"program\""), "`arch`");
    refused_text(&edited("bytes = 4", "bytes = 9000000000000000000"), "take more than");
    refused_text(&edited("sha256 = \"", "sha256 = \"Z"), "sha256");
    refused_text("bundle = 1\nname = ", "is wrong");
    refused_text(&format!("# {}\n{good}", "x".repeat(70_000)), "at most 65536");
}

#[test]
fn a_bundle_cut_or_harmed_anywhere_is_refused_or_the_same() {
    let signer = Signer::new(1);
    let whole = archive(&good(&signer));
    for cut in 0..whole.len() {
        let (_dir, unpacked) = unpack(&whole[..cut], &signer.trust());
        // All may be there before the archive's own end, which carries nothing.
        if let Ok(unpacked) = unpacked {
            assert_eq!(unpacked, manifest("yard", "1.2.0", &FILES), "{cut}");
            assert!(cut > whole.len() - 64, "{cut} of {}", whole.len());
        }
    }
    for at in 0..whole.len() {
        let mut harmed = whole.clone();
        harmed[at] ^= 0x10;
        let (dir, unpacked) = unpack(&harmed, &signer.trust());
        if let Ok(unpacked) = unpacked {
            assert_eq!(unpacked, manifest("yard", "1.2.0", &FILES), "{at}");
            for (name, bytes) in FILES {
                assert_eq!(fs::read(dir.path().join(name)).unwrap(), bytes, "{at}");
            }
        }
    }
}

#[test]
fn a_disk_without_room_is_told_before_anything_is_written() {
    let signer = Signer::new(1);
    let mut manifest = manifest("yard", "1.2.0", &FILES);
    manifest.files[1].bytes = 1 << 29;
    let members = signed(&signer, &manifest, &FILES);
    let dir = TempDir::new().unwrap();
    let free = |path: &Path| {
        let stat = rustix::fs::statvfs(path).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    // Where there is room the size is wrong; a small disk says so first.
    let small = Path::new("/dev/shm");
    let place = if small.is_dir() && free(small) < 1 << 29 { small } else { dir.path() };
    let error = bundle::unpack(archive(&members).as_slice(), &signer.trust(), place).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("MB free") || told.contains("bytes of"), "{told}");
    assert!(
        bundle::ensure_space(dir.path(), u64::MAX).unwrap_err().to_string().contains("MB free")
    );
}

#[test]
fn versions_are_compared_by_number() {
    let version = |text: &str| text.parse::<Version>();
    assert!(version("1.10").unwrap() > version("1.9.9").unwrap());
    assert_eq!(version("2").unwrap(), version("2.0.0").unwrap());
    assert_eq!(version("1.2.3").unwrap().to_string(), "1.2.3");
    for wrong in ["", "1.", "a", "1.2.3.4", "-1", "+1", "1.2.3-rc1", "99999999999"] {
        assert!(version(wrong).is_err(), "{wrong}");
    }
}

const MINISIGN_KEY: &str = "RWR2+fnq8lDzljrkLjRhKsOn0CHxoKTS2xktio5PG4MmlQqVKvAQZ/SR";
const MINISIGN_SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
    RUR2+fnq8lDzlqDn6WiuaezpJjSzORJvCo/cZH6vUyBvVy9axvY+7DZr6g07E7yJjZqeo/3grauAoYWI5e3OcuomO6Y8ZDDATgU=\n\
    trusted comment: timestamp:0\n\
    EH+uQSCxe1Vaf/jkZAPDSSamPN9xuqXBAO5rDRaQ3cOnuEoKvI7NWSnJ2LDug7I+LK9Xd2dtjJXcsNuNYk2PBg==\n";
