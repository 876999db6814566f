//! Bundles made in a test, whole and harmed; a signer; a server.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use blake2::{Blake2b512, Digest as _};
use pawlatch::bundle::{self, FileLine, Kind, MANIFEST_FILE, Manifest, SIGNATURE_FILE, Trust};
use ring::signature::{Ed25519KeyPair, KeyPair as _};

/// Somebody who signs as minisign does, with a key that follows from a number.
pub struct Signer {
    key: Ed25519KeyPair,
    id: [u8; 8],
}

impl Signer {
    pub fn new(seed: u8) -> Self {
        Self { key: Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(), id: [seed; 8] }
    }

    /// The second line of the `.pub` file.
    pub fn public(&self) -> String {
        STANDARD.encode([b"Ed".as_slice(), &self.id, self.key.public_key().as_ref()].concat())
    }

    pub fn trust(&self) -> Trust {
        Trust::in_keys(&[self.public()]).unwrap()
    }

    /// The text of a `.minisig` file for `text`.
    pub fn sign(&self, text: &str) -> String {
        let signature = self.key.sign(&Blake2b512::digest(text.as_bytes()));
        self.minisig(b"ED", signature.as_ref())
    }

    /// As minisign signed before it hashed first.
    pub fn sign_as_of_old(&self, text: &str) -> String {
        self.minisig(b"Ed", self.key.sign(text.as_bytes()).as_ref())
    }

    fn minisig(&self, algorithm: &[u8], signature: &[u8]) -> String {
        let comment = "made by a test";
        let global = self.key.sign(&[signature, comment.as_bytes()].concat());
        format!(
            "untrusted comment: none\n{}\ntrusted comment: {comment}\n{}\n",
            STANDARD.encode([algorithm, &self.id, signature].concat()),
            STANDARD.encode(global)
        )
    }
}

/// One member of an archive.
pub struct Member {
    pub name: Vec<u8>,
    pub kind: tar::EntryType,
    pub bytes: Vec<u8>,
}

pub fn member(name: &str, bytes: impl Into<Vec<u8>>) -> Member {
    Member { name: name.into(), kind: tar::EntryType::Regular, bytes: bytes.into() }
}

/// A `.tar.gz` of exactly these members, whatever their names.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gz);
    for member in members {
        let mut header = tar::Header::new_ustar();
        // The library would refuse names that lead astray; attackers would not.
        header.as_old_mut().name[..member.name.len()].copy_from_slice(&member.name);
        header.set_entry_type(member.kind);
        header.set_size(member.bytes.len() as u64);
        header.set_mode(0o777);
        header.set_cksum();
        archive.append(&header, member.bytes.as_slice()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

pub fn line(name: &str, bytes: &[u8]) -> FileLine {
    let (n, sha256) = bundle::copy_hashed(&mut &*bytes, &mut std::io::sink()).unwrap();
    FileLine { name: name.to_owned(), bytes: n, sha256 }
}

/// The manifest of a model with these files.
pub fn manifest(name: &str, version: &str, files: &[(&str, &[u8])]) -> Manifest {
    Manifest {
        bundle: 1,
        kind: Kind::Model,
        name: name.to_owned(),
        version: version.parse().unwrap(),
        arch: None,
        files: files.iter().map(|(name, bytes)| line(name, bytes)).collect(),
    }
}

/// The members of a signed bundle.
pub fn signed(signer: &Signer, manifest: &Manifest, files: &[(&str, &[u8])]) -> Vec<Member> {
    let text = toml::to_string(manifest).unwrap();
    let mut members = vec![member(SIGNATURE_FILE, signer.sign(&text)), member(MANIFEST_FILE, text)];
    members.reverse();
    members.extend(files.iter().map(|(name, bytes)| member(name, *bytes)));
    members
}

/// A signed bundle of the shipped classifier, its manifest changed by `edit`, as `name` `version`.
pub fn model_bundle(
    signer: &Signer,
    name: &str,
    version: &str,
    edit: impl Fn(String) -> String,
) -> Vec<u8> {
    let dir = models_dir().join("efficientnet_lite0");
    let text = fs::read_to_string(dir.join("model.toml")).unwrap();
    let text = text
        .replacen("name = \"efficientnet_lite0\"", &format!("name = \"{name}\""), 1)
        .replacen("version = \"1.0.0\"", &format!("version = \"{version}\""), 1);
    let text = edit(text);
    let onnx = fs::read(dir.join("efficientnet_lite0.onnx")).unwrap();
    let files = [("model.toml", text.as_bytes()), ("efficientnet_lite0.onnx", onnx.as_slice())];
    archive(&signed(signer, &manifest(name, version, &files), &files))
}

pub fn models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// What a server answers with.
#[derive(Clone, Copy)]
pub enum Answer {
    Whole,
    /// It promises all and breaks off after this share of it, in percent.
    BreaksOff(usize),
    NotFound,
}

/// Serves `bytes` on this machine to whoever asks, as long as the test runs; gives its address.
pub fn serve(bytes: Vec<u8>, answer: Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/bundle.tar.gz", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.read(&mut [0; 4_096]);
            let (status, sent) = match answer {
                Answer::Whole => ("200 OK", bytes.len()),
                Answer::BreaksOff(percent) => ("200 OK", bytes.len() * percent / 100),
                Answer::NotFound => ("404 Not Found", 0),
            };
            let promised = if sent == 0 { 0 } else { bytes.len() };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {promised}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&bytes[..sent]);
        }
    });
    address
}

/// Name of the variable that makes a test a child: it holds where the child works.
pub const CHILD: &str = "PAWLATCH_UPDATE_CHILD";

/// Starts this very test program again as a child that runs only `test`, with `what` to do and
/// files that cannot grow beyond `limit` blocks of 512 bytes.
pub fn child(test: &str, dir: &Path, what: &str, limit: Option<u64>) -> Child {
    let program = std::env::current_exe().unwrap();
    let limit = limit.map_or_else(|| "unlimited".to_owned(), |blocks| blocks.to_string());
    // Without the signal a write beyond the limit fails, as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .env("PAWLATCH_UPDATE_WHAT", what)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the child is to do: its directory and `what`.
pub fn as_child() -> Option<(PathBuf, String)> {
    let dir = std::env::var_os(CHILD)?;
    Some((dir.into(), std::env::var("PAWLATCH_UPDATE_WHAT").unwrap_or_default()))
}

/// Ends this process as a power cut would.
pub fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    unreachable!()
}

pub fn write(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}
