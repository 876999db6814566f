//! Programs that come as bundles: whatever happens on the way, something that works is started,
//! and in the end the door stays locked.

#![expect(clippy::unwrap_used, reason = "a test may be blunt")]

mod bundles;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bundles::{Answer, Signer, archive, as_child, child, die, manifest, serve, signed};
use pawlatch::bundle::{Kind, Trust, Version};
use pawlatch::exam::Marks;
use pawlatch::releases::{self, Releases, Rung, Step, UpdateError, version_of};
use tempfile::TempDir;

const NOW: Marks = Marks { pictures: 45, mistaken: 0, missed: 1, let_in: 0, kept_out: 0 };

/// A program that does what one must, tells what it was started with, and ends.
fn program(version: &str) -> String {
    format!(
        "#!/bin/sh\ncase \"$1\" in\n--version) echo pawlatch {version};;\ncheck) exit 0;;\n\
         exam) echo '{}';;\n*) echo \"release {version} of $PAWLATCH_RELEASE: $*\";;\nesac\n",
        serde_json::to_string(&NOW).unwrap()
    )
}

fn release_bundle(version: &str, program: &str, arch: &str) -> Vec<u8> {
    let files = [("pawlatch", program.as_bytes())];
    let mut manifest = manifest("pawlatch", version, &files);
    manifest.kind = Kind::Program;
    manifest.arch = Some(arch.to_owned());
    archive(&signed(&Signer::new(1), &manifest, &files))
}

fn good(version: &str) -> Vec<u8> {
    release_bundle(version, &program(version), std::env::consts::ARCH)
}

fn trust() -> Trust {
    Signer::new(1).trust()
}

fn exercise(program: &Path, version: Version) -> Result<(), UpdateError> {
    releases::exercise(program, version, &[], &NOW)
}

struct Door {
    dir: TempDir,
    releases: Releases,
}

impl Door {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let releases = Releases::at(dir.path().join("update"));
        Self { dir, releases }
    }

    fn install(&self, bytes: &[u8]) -> Result<Version, UpdateError> {
        let path = self.dir.path().join("bundle.tar.gz");
        bundles::write(&path, bytes);
        self.install_from(path.to_str().unwrap())
    }

    fn install_from(&self, from: &str) -> Result<Version, UpdateError> {
        self.releases.install(from, &trust(), false, &exercise, &mut |_| {})
    }

    /// Starts the door; gives what was started.
    fn boot(&self) -> String {
        let boot = self.releases.boot(&trust());
        let version = |release: PathBuf| version_of(&release).unwrap().to_string();
        match boot.rung {
            Rung::Trial(release) => format!("trial {}", version(release)),
            Rung::Current(release) => version(release),
            Rung::Packaged { plain: true } => "packaged".to_owned(),
            Rung::Packaged { plain: false } => "packaged, alone".to_owned(),
            Rung::Safe => "safe".to_owned(),
        }
    }

    /// The door has been healthy, run by `version`.
    fn healthy(&self, version: Option<&str>) {
        self.releases.confirm(version).unwrap();
    }
}

#[test]
fn a_release_is_tried_and_kept_once_the_door_is_healthy() {
    let door = Door::new();
    assert_eq!(door.boot(), "packaged");
    door.healthy(None);
    assert_eq!(door.install(&good("9.1.0")).unwrap().to_string(), "9.1.0");
    assert_eq!(door.boot(), "trial 9.1.0");
    // Healthy, but it is another that runs: not a word for the trial.
    door.healthy(None);
    assert_eq!(door.boot(), "trial 9.1.0");
    door.healthy(Some("9.1.0"));
    for _ in 0..3 {
        assert_eq!(door.boot(), "9.1.0");
    }
    door.healthy(Some("9.1.0"));
    let url = serve(good("9.2.0"), Answer::Whole);
    door.install_from(&url).unwrap();
    assert_eq!(door.boot(), "trial 9.2.0");
    door.healthy(Some("9.2.0"));
    assert_eq!(door.boot(), "9.2.0");
    // And back, to the one before, then to the package.
    assert_eq!(door.releases.roll_back().unwrap().unwrap().to_string(), "9.1.0");
    assert_eq!(door.boot(), "9.1.0");
    assert_eq!(door.releases.roll_back().unwrap(), None);
    assert_eq!(door.boot(), "packaged");
    assert!(matches!(door.releases.roll_back(), Err(UpdateError::NoPrevious)));
}

#[test]
fn a_trial_that_is_never_healthy_is_given_up_and_ten_failures_keep_the_door_locked() {
    let door = Door::new();
    door.install(&good("9.1.0")).unwrap();
    door.boot();
    door.healthy(Some("9.1.0"));
    door.install(&good("9.2.0")).unwrap();
    let started: Vec<String> = (0..12).map(|_| door.boot()).collect();
    let expected = [&["trial 9.2.0"; 3][..], &["9.1.0"; 3], &["packaged, alone"; 4], &["safe"; 2]];
    assert_eq!(started, expected.concat());
    // After safe mode one more start, then safe again.
    door.releases.allow_one_start().unwrap();
    assert_eq!(door.boot(), "packaged, alone");
    assert_eq!(door.boot(), "safe");
    // The owner begins anew; the trial stays given up.
    door.releases.forget_failures().unwrap();
    assert_eq!(door.boot(), "9.1.0");
}

#[test]
fn what_is_refused_leaves_what_was() {
    let door = Door::new();
    door.install(&good("9.1.0")).unwrap();
    door.boot();
    door.healthy(Some("9.1.0"));
    let refused = |bytes: &[u8], told: &str| {
        let error = door.install(bytes).expect_err(told);
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(told), "{error}");
        assert_eq!(door.releases.link("trial"), None, "{told}");
        assert_eq!(door.boot(), "9.1.0", "{told}");
        door.healthy(Some("9.1.0"));
    };
    let here = std::env::consts::ARCH;
    refused(&good("9.1.0"), "not newer than 9.1.0");
    refused(&good("9.0.9"), "not newer than 9.1.0");
    refused(&good("0.0.1"), "not newer");
    refused(&good("9.2.0")[..300], "cut short");
    refused(&release_bundle("9.2.0", &program("9.2.0"), "z80"), "for z80");
    refused(&release_bundle("9.2.0", &program("9.3.0"), here), "it says `pawlatch 9.3.0`");
    let failing = program("9.2.0").replace("check) exit 0", "check) echo no models >&2; exit 1");
    refused(&release_bundle("9.2.0", &failing, here), "no models");
    let worse = program("9.2.0").replace("\"missed\":1", "\"missed\":2");
    refused(&release_bundle("9.2.0", &worse, here), "2 pictures of the dog are missed");
    let silent = program("9.2.0").replace("exam) echo", "exam) true");
    refused(&release_bundle("9.2.0", &silent, here), "cannot be read");
    refused(&release_bundle("9.2.0", "\x7fELF, but not really", here), "--version");
    let model = archive(&signed(
        &Signer::new(1),
        &manifest("yard", "9.2.0", &[("model.toml", b"x")]),
        &[("model.toml", b"x")],
    ));
    refused(&model, "not a release of pawlatch");
    let error = door.install_from(&serve(good("9.2.0"), Answer::BreaksOff(50))).unwrap_err();
    assert!(error.to_string().contains("broke off"), "{error}");
}

#[test]
fn a_release_that_rots_on_the_disk_is_not_started() {
    let door = Door::new();
    door.install(&good("9.1.0")).unwrap();
    door.boot();
    door.healthy(Some("9.1.0"));
    let file = door.releases.link("current").unwrap().join("pawlatch");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(door.boot(), "packaged, alone");
    // The same for one that is being tried, and for links that lead astray.
    door.install(&good("9.2.0")).unwrap();
    fs::write(door.releases.link("trial").unwrap().join("pawlatch"), "#!/bin/sh\n").unwrap();
    assert_eq!(door.boot(), "packaged, alone");
    let current = door.dir.path().join("update/current");
    fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink("/bin", &current).unwrap();
    assert_eq!(door.boot(), "packaged");
}

#[test]
fn a_state_that_cannot_be_read_or_written_starts_the_package() {
    let door = Door::new();
    let update = door.dir.path().join("update");
    // Not a directory at all.
    fs::write(&update, "x").unwrap();
    assert_eq!(door.boot(), "packaged");
    fs::remove_file(&update).unwrap();
    door.install(&good("9.1.0")).unwrap();
    for text in ["", "many", "-1", "99999999999999999999"] {
        fs::write(update.join("attempts"), text).unwrap();
        assert_eq!(door.boot(), "trial 9.1.0", "{text:?}");
    }
    // A start that cannot be counted tries nothing new: it could be the thousandth.
    fs::remove_file(update.join("attempts")).unwrap();
    fs::create_dir_all(update.join("attempts/full")).unwrap();
    assert_eq!(door.boot(), "packaged");
}

/// Not a test by itself: installs a release, and dies after the step it is told.
#[test]
fn child_installs_a_release() {
    let Some((dir, what)) = as_child() else { return };
    let from = dir.join("bundle.tar.gz").display().to_string();
    let releases = Releases::at(dir.join("update"));
    let installed = releases.install(&from, &trust(), false, &exercise, &mut |step| {
        if format!("{step:?}") == what {
            die();
        }
    });
    match installed {
        Ok(version) => println!("installed {version}"),
        Err(error) => println!("refused {:#}", anyhow::Error::from(error)),
    }
}

#[test]
fn a_power_cut_after_any_step_leaves_a_door_that_starts() {
    let steps = [Step::Fetched, Step::Unpacked, Step::Tried, Step::Placed, Step::Staged];
    for step in steps {
        let door = Door::new();
        door.install(&good("9.1.0")).unwrap();
        door.boot();
        door.healthy(Some("9.1.0"));
        bundles::write(&door.dir.path().join("bundle.tar.gz"), &good("9.2.0"));
        let what = format!("{step:?}");
        let mut child = child("child_installs_a_release", door.dir.path(), &what, None);
        assert!(!child.wait().unwrap().success(), "{step:?}: it died");
        let expected = if step == Step::Staged { "trial 9.2.0" } else { "9.1.0" };
        assert_eq!(door.boot(), expected, "{step:?}");
        door.install(&good("9.2.0")).unwrap();
        assert_eq!(door.boot(), "trial 9.2.0", "{step:?}");
        door.healthy(Some("9.2.0"));
        assert_eq!(door.boot(), "9.2.0", "{step:?}");
    }
}

#[test]
fn a_disk_that_fills_up_on_the_way_leaves_what_was() {
    let door = Door::new();
    door.install(&good("9.1.0")).unwrap();
    door.boot();
    door.healthy(Some("9.1.0"));
    let padded = format!("{}\n# {}", program("9.2.0"), "x".repeat(100_000));
    let bytes = release_bundle("9.2.0", &padded, std::env::consts::ARCH);
    bundles::write(&door.dir.path().join("bundle.tar.gz"), &bytes);
    for limit in [0, 1, 16, 100] {
        let child = child("child_installs_a_release", door.dir.path(), "", Some(limit));
        let out = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&out.stdout);
        assert!(told.contains("refused cannot"), "{limit}: {told}");
        assert_eq!(door.boot(), "9.1.0", "{limit}");
        door.healthy(Some("9.1.0"));
    }
}

/// A configuration with the update directory and the test's key, and a latch that remembers.
fn config(door: &Door) -> PathBuf {
    let path = door.dir.path().join("pawlatch.toml");
    let text = format!(
        "[update]\ndir = {:?}\npublic_keys = [{:?}]\n[latch]\nstate_path = {:?}\n[log]\nfilter = \
         \"info\"\n",
        door.dir.path().join("update"),
        Signer::new(1).public(),
        door.dir.path().join("bolt")
    );
    fs::write(&path, text).unwrap();
    path
}

fn pawlatch(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pawlatch"));
    command.args(arguments).arg("--config").arg(config).env_remove("PAWLATCH_LOG");
    command
}

#[test]
fn the_service_starts_the_release_with_its_arguments_and_a_deadline() {
    let door = Door::new();
    let config = config(&door);
    // A trial that says how many seconds the kernel still gives it.
    let tester = std::env::current_exe().unwrap();
    let telling = program("9.1.0").replace(
        "*) echo",
        &format!("*) exec {tester:?} --exact child_tells_its_deadline --nocapture;;\n-) echo"),
    );
    door.install(&release_bundle("9.1.0", &telling, std::env::consts::ARCH)).unwrap();
    let out = pawlatch(&config, &["boot"]).env(bundles::CHILD, "x").output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    let left = told.split_once("deadline ").and_then(|(_, rest)| rest.split_once('.'));
    let left: u64 = left.unwrap_or_else(|| panic!("{told}")).0.parse().unwrap();
    let limit = releases::TRIAL_FOR.as_secs();
    assert!((limit - 60..=limit).contains(&left), "{left} s are left");
    // One that has proved itself has none.
    door.install(&good("9.2.0")).unwrap();
    door.boot();
    door.healthy(Some("9.2.0"));
    let out = pawlatch(&config, &["boot"]).output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    let expected = format!("release 9.2.0 of 9.2.0: run --config {}", config.display());
    assert_eq!(told.trim(), expected);
    let out = pawlatch(&config, &["update", "status"]).output().unwrap();
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(told.contains("current   9.2.0") && told.contains("1 of 10"), "{told}");
}

/// Not a test by itself: says when the kernel will end this process.
#[test]
fn child_tells_its_deadline() {
    if as_child().is_some() {
        // SAFETY: takes a number and gives one.
        println!("deadline {}.", unsafe { libc::alarm(0) });
    }
}

#[test]
fn safe_mode_locks_and_stays_until_told_to_stop() {
    let door = Door::new();
    let config = config(&door);
    for _ in 0..10 {
        door.boot();
    }
    // Somebody left it open.
    let bolt = door.dir.path().join("bolt");
    fs::write(&bolt, "unlocked").unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = pawlatch(&config, &["boot"])
        .env("PAWLATCH__PAGE__LISTEN", format!("127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let locked = || fs::read_to_string(&bolt).is_ok_and(|text| text == "locked");
    while !locked() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
    }
    // The page says so, whatever is asked of it.
    for request in ["GET / ", "POST /act/open_once ", "GET /api/status "] {
        let answer = loop {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                let head = format!("{request}HTTP/1.1\r\nHost: door\r\nConnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                break answer;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "nothing listens");
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(answer.starts_with("HTTP/1.1 503 "), "{request}: {answer}");
        assert!(answer.contains("The door stays locked"), "{request}: {answer}");
        assert!(answer.contains("content-security-policy"), "{request}: {answer}");
    }
    assert!(child.try_wait().unwrap().is_none(), "it stays");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{:?}", out.status);
    assert!(String::from_utf8_lossy(&out.stderr).contains("safe mode"));
    assert!(locked());
}
