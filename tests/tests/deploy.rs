//! The scripts that write cards and install packages, on files instead of disks and on a made-up
//! system instead of this one.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn told(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Runs flash.sh with `typed` on its input.
fn flash(image: &Path, device: &Path, typed: &str) -> Output {
    let mut child = Command::new("sh")
        .arg(script("flash.sh"))
        .args([image, device])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may be gone before it asks.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    child.wait_with_output().unwrap()
}

/// A made-up image of 3 MB and a "card" of 8 MB full of something else.
fn image_and_card() -> (TempDir, PathBuf, PathBuf) {
    let dir = TempDir::new().unwrap();
    let (image, card) = (dir.path().join("door.img"), dir.path().join("card"));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    fs::write(&image, bytes).unwrap();
    fs::write(&card, vec![0xee; 8_000_000]).unwrap();
    (dir, image, card)
}

#[test]
fn a_card_is_written_and_read_back_once_its_size_is_said() {
    let (_dir, image, card) = image_and_card();
    let out = flash(&image, &card, "8\n");
    assert!(out.status.success(), "{}", told(&out));
    let (wanted, got) = (fs::read(&image).unwrap(), fs::read(&card).unwrap());
    assert!(got.starts_with(&wanted), "the image is on it");
    assert!(got.len() == 8_000_000 && got[3_000_000..].iter().all(|b| *b == 0xee), "no more");
    // The same from a compressed image.
    fs::write(&card, vec![0; 8_000_000]).unwrap();
    assert!(Command::new("gzip").arg("-k").arg(&image).status().unwrap().success());
    let out = flash(&image.with_extension("img.gz"), &card, "8\n");
    assert!(out.status.success(), "{}", told(&out));
    assert!(fs::read(&card).unwrap().starts_with(&wanted));
}

#[test]
fn nothing_is_written_unless_everything_is_right() {
    let (dir, image, card) = image_and_card();
    let small = dir.path().join("small");
    fs::write(&small, vec![0xee; 2_000_000]).unwrap();
    let cut = dir.path().join("cut.img.gz");
    assert!(Command::new("gzip").arg("-k").arg(&image).status().unwrap().success());
    let whole = fs::read(image.with_extension("img.gz")).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let text = dir.path().join("door.txt");
    fs::write(&text, "x").unwrap();
    let empty = dir.path().join("empty.img");
    fs::write(&empty, "").unwrap();
    let gone = dir.path().join("gone");
    for (image, card, typed, why) in [
        (&image, &card, "9\n", "not its size"),
        (&image, &card, "yes\n", "not its size"),
        (&image, &card, "", "not its size"),
        (&image, &small, "2\n", "the image needs"),
        (&cut, &card, "8\n", "cannot be unpacked"),
        (&text, &card, "8\n", "no .img"),
        (&empty, &card, "8\n", "holds nothing"),
        (&gone, &card, "8\n", "not a file"),
        (&image, &dir.path().to_owned(), "8\n", "neither a disk nor a file"),
        (&image, &PathBuf::from("/dev/null"), "0\n", "neither a disk nor a file"),
    ] {
        let out = flash(image, card, typed);
        assert!(!out.status.success() && told(&out).contains(why), "{why}: {}", told(&out));
    }
    assert!(fs::read(&card).unwrap().iter().all(|b| *b == 0xee), "untouched");
    // An image that is not the one whose hash is beside it.
    fs::write(dir.path().join("SHA256SUMS"), format!("{}  door.img\n", "0".repeat(64))).unwrap();
    let out = flash(&image, &card, "8\n");
    assert!(!out.status.success() && told(&out).contains("SHA256SUMS"), "{}", told(&out));
}

#[test]
fn the_disk_of_the_running_system_is_refused() {
    let (_dir, image, _card) = image_and_card();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let source = mounts.lines().filter_map(|line| line.split(' ').next());
    let Some(disk) = source.map(Path::new).find(|s| s.starts_with("/dev") && s.exists()) else {
        eprintln!("skipped: nothing is mounted from a disk here");
        return;
    };
    let out = flash(&image, disk, "0\n");
    assert!(!out.status.success(), "{}", told(&out));
    assert!(!told(&out).contains("Type its size"), "refused before it asks: {}", told(&out));
}

/// A made-up Raspberry Pi 4 without a camera, and a package of architecture `arch`.
struct Board {
    dir: TempDir,
    deb: PathBuf,
}

impl Board {
    fn new(arch: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("root");
        for sub in ["proc/device-tree", "etc", "var/lib/dpkg/updates", "var/lib/dpkg/info", "dev"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
        write("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0");
        write("proc/meminfo", "MemTotal: 4000000 kB\n");
        write("etc/os-release", "PRETTY_NAME=\"Raspberry Pi OS (bookworm)\"\n");
        write("var/lib/dpkg/status", "");
        write("dev/gpiochip0", "");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        let control = format!(
            "Package: pawlatch\nVersion: 0.1.0\nArchitecture: {arch}\nMaintainer: x <x@x.org>\n\
             Description: a door\n"
        );
        fs::write(tree.join("DEBIAN/control"), control).unwrap();
        let deb = dir.path().join("pawlatch.deb");
        let built = Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .args([&tree, &deb])
            .output();
        match built {
            Ok(out) if out.status.success() => Some(Self { dir, deb }),
            _ => {
                eprintln!("skipped: there is no dpkg-deb here");
                None
            }
        }
    }

    fn install(&self, arguments: &[&str]) -> Output {
        Command::new("sh")
            .arg(script("install.sh"))
            .args(arguments)
            .env("PAWLATCH_ROOT", self.dir.path().join("root"))
            .output()
            .unwrap()
    }
}

fn architecture() -> String {
    let out = Command::new("dpkg").arg("--print-architecture").output();
    out.map_or_else(|_| String::new(), |out| String::from_utf8(out.stdout).unwrap().trim().into())
}

#[test]
fn installing_says_what_it_finds_and_a_dry_run_does_nothing() {
    let Some(board) = Board::new(&architecture()) else { return };
    let out = board.install(&["--dry-run", board.deb.to_str().unwrap()]);
    let said = told(&out);
    assert!(out.status.success(), "{said}");
    for part in [
        "Raspberry Pi 4 Model B",
        "Raspberry Pi OS (bookworm)",
        "no camera is found",
        "Lines: /dev/gpiochip0",
        "would run: apt-get install",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let out = board.install(&["--dry-run", "--uninstall"]);
    assert!(told(&out).contains("not installed"), "{}", told(&out));
}

#[test]
fn what_does_not_fit_is_refused_with_the_remedy() {
    let other = if architecture() == "armhf" { "arm64" } else { "armhf" };
    let Some(board) = Board::new(other) else { return };
    let deb = board.deb.to_str().unwrap();
    let refused = |arguments: &[&str], why: &str| {
        let out = board.install(arguments);
        assert!(!out.status.success() && told(&out).contains(why), "{why}: {}", told(&out));
    };
    refused(&["--dry-run", deb], &format!("the package is for {other}"));
    refused(&["--dry-run"], "which package?");
    refused(&["--dry-run", "/nowhere.deb"], "not a file");
    refused(&["--dry-run", script("install.sh").to_str().unwrap()], "not a package of Pawlatch");
    refused(&["--dry-run", "--paw", deb], "unknown option");
    let model = board.dir.path().join("root/proc/device-tree/model");
    fs::write(model, "Raspberry Pi Model B Rev 2\0").unwrap();
    refused(&["--dry-run", deb], "too slow");
    fs::write(board.deb.with_file_name("SHA256SUMS"), "0  pawlatch.deb\n").unwrap();
    refused(&["--dry-run", deb], "SHA256SUMS");
}
