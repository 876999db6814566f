//! Programs that came as signed bundles, and which of them is started: a ladder that only a
//! healthy door climbs.
//!
//! ```text
//! update/
//!   releases/0.2.0/    pawlatch, bundle.toml, bundle.toml.minisig
//!   trial    ->        the one that is being tried; absent: none
//!   current  ->        the one that has proved healthy; absent: the packaged program
//!   previous ->        the one before that, for the way back
//!   attempts           starts since the door was last healthy
//! ```
//!
//! The packaged program is never replaced. The service starts it with `pawlatch boot`; that counts
//! the start, picks a rung and becomes that program:
//!
//! | starts since the door was healthy | rung |
//! |---|---|
//! | 1 to 3 | the trial, if there is one; it must be healthy within [`TRIAL_FOR`] |
//! | to 6 | the current release; a trial that got here is given up |
//! | to 10 | the packaged program, with the packaged models |
//! | more | safe mode: locked, and after a while one more start |
//!
//! A release is verified again at every start, so a torn or altered one is never run. Each change
//! of state is one rename; a power cut leaves the old or the new one.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pawlatch_core::door::{Decision, State};
use pawlatch_core::units::Uptime;
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use crate::bundle::{self, BundleError, Kind, Manifest, Trust, Version};
use crate::download::{self, DownloadError};
use crate::exam::Marks;

/// File name of the program in a release.
pub const PROGRAM: &str = "pawlatch";
/// Name in a bundle that is a release of this program.
const NAME: &str = "pawlatch";
/// Starts that a trial is given.
const TRIAL_ATTEMPTS: u32 = 3;
/// Start after which the current release is given up for the packaged program.
const CURRENT_ATTEMPTS: u32 = 6;
/// Start after which the door only stays locked.
pub const MAX_ATTEMPTS: u32 = 10;
/// Within this time from its start a trial must be healthy, or the kernel ends it.
pub const TRIAL_FOR: Duration = Duration::from_secs(300);
/// How long a door must have been without a fault to be healthy.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How long the staged program may take to examine this door's models, on the slowest board.
const TRY_WITHIN: Duration = Duration::from_secs(600);
/// Environment variable in which a release is told its version.
pub const ENVIRONMENT: &str = "PAWLATCH_RELEASE";

/// Why an update failed. What ran before still runs.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// The bundle is refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It cannot be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// Somebody else is changing the directory.
    #[error("another pawlatch is changing {}; wait until it is done", dir.display())]
    Busy {
        /// The update directory.
        dir: PathBuf,
    },
    /// The bundle holds something else.
    #[error("the bundle holds {0}, not a release of pawlatch; for a model use `model add`")]
    NotARelease(String),
    /// It is for another processor.
    #[error("the release is for {is}, this door is {wanted}; fetch the one for {wanted}")]
    Arch {
        /// What it is for.
        is: String,
        /// What this door is.
        wanted: &'static str,
    },
    /// A newer one is there.
    #[error(
        "release {new} is not newer than {installed}, which is there; --allow-downgrade allows \
         one that is newer than the package at least; otherwise install an older package"
    )]
    Downgrade {
        /// The one to be installed.
        new: Version,
        /// The one that is there.
        installed: Version,
    },
    /// Another one of that version is in use.
    #[error("another release {0} is in use; a changed release needs a new version")]
    Taken(Version),
    /// It does not do what it must on this door.
    #[error("release {version} failed its trial run, `{command}`: {why}")]
    Trial {
        /// Which release.
        version: Version,
        /// What it was asked to do.
        command: String,
        /// How it failed.
        why: String,
    },
    /// There is nothing to go back to.
    #[error("no release is in use; the packaged program is")]
    NoPrevious,
    /// A file cannot be read or written.
    #[error("cannot change {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Which program is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rung {
    /// The release that is being tried.
    Trial(PathBuf),
    /// The release that has proved healthy.
    Current(PathBuf),
    /// The packaged program. `plain`: nothing else is installed; otherwise releases have failed,
    /// and it is to run with the packaged models.
    Packaged {
        /// Whether it is the usual one.
        plain: bool,
    },
    /// None: the door stays locked.
    Safe,
}

/// A start: its number since the door was last healthy, and its rung.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// From 1.
    pub attempt: u32,
    /// What to start.
    pub rung: Rung,
    /// What the owner should know, in sentences.
    pub notes: Vec<String>,
}

/// What has been done, told as it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The file is there, whole, and of the wanted hash.
    Fetched,
    /// It is believed and unpacked in the staging directory.
    Unpacked,
    /// It has done on this door what it must.
    Tried,
    /// It is in its place.
    Placed,
    /// The next start tries it.
    Staged,
}

/// The update directory.
#[derive(Debug, Clone)]
pub struct Releases {
    dir: PathBuf,
}

impl Releases {
    /// The update directory at `dir`, which need not be there yet.
    pub const fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Counts a start and says what to start. Never fails: what cannot be read or verified is
    /// left out, down to the packaged program.
    pub fn boot(&self, trust: &Trust) -> Boot {
        let mut notes = Vec::new();
        let attempt = self.attempts().saturating_add(1);
        let counted = self.write_attempts(attempt);
        let trial = self.link("trial");
        if let Err(error) = &counted {
            notes.push(format!("the start cannot be counted ({error}), so nothing new is tried"));
        }
        if attempt > MAX_ATTEMPTS {
            return Boot { attempt, rung: Rung::Safe, notes };
        }
        if let Some(release) = trial.filter(|_| counted.is_ok()) {
            let fault = if attempt > TRIAL_ATTEMPTS {
                Some("it was not healthy in time".to_owned())
            } else {
                bundle::verify_dir(&release, trust).err().map(|e| e.to_string())
            };
            match fault {
                None => return Boot { attempt, rung: Rung::Trial(release), notes },
                Some(why) => {
                    notes.push(format!("the trial of {} is over: {why}", release.display()));
                    // If it cannot be removed, it is given up again at the next start.
                    let _ = fs::remove_file(self.dir.join("trial"));
                }
            }
        }
        // A package that was upgraded since is newer than the release that once was.
        let newer = |release: &PathBuf| version_of(release) > packaged();
        let Some(release) = self.link("current").filter(newer) else {
            let plain = attempt <= CURRENT_ATTEMPTS;
            return Boot { attempt, rung: Rung::Packaged { plain }, notes };
        };
        let fault = bundle::verify_dir(&release, trust).err();
        if let Some(error) = &fault {
            notes.push(format!("the release {} is not run: {error}", release.display()));
        }
        let rung = if attempt <= CURRENT_ATTEMPTS && fault.is_none() {
            Rung::Current(release)
        } else {
            Rung::Packaged { plain: false }
        };
        Boot { attempt, rung, notes }
    }

    /// The door has been healthy for a while: forgets the failed starts, and makes the trial the
    /// current release if it is `running` (the version in [`ENVIRONMENT`]).
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn confirm(&self, running: Option<&str>) -> Result<(), UpdateError> {
        let trial = self.link("trial");
        let is_trial = |release: &PathBuf| release.file_name().and_then(|n| n.to_str()) == running;
        if running.is_some() && trial.as_ref().is_some_and(is_trial) {
            if let Some(current) = self.link("current") {
                self.set_link("previous", &current)?;
            }
            self.rename("trial", "current")?;
        }
        if self.attempts() != 0 {
            self.write_attempts(0)?;
        }
        Ok(())
    }

    /// After safe mode: the next start is one more try, and the one after it safe again.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn allow_one_start(&self) -> Result<(), UpdateError> {
        self.write_attempts(MAX_ATTEMPTS - 1)
    }

    /// Forgets the failed starts.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn forget_failures(&self) -> Result<(), UpdateError> {
        self.write_attempts(0)
    }

    /// Starts since the door was last healthy; 0 if that cannot be read.
    pub fn attempts(&self) -> u32 {
        let text = fs::read_to_string(self.dir.join("attempts")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// The release that `name` (`current`, `trial`, `previous`) stands for, if it is there.
    pub fn link(&self, name: &str) -> Option<PathBuf> {
        let target = fs::read_link(self.dir.join(name)).ok()?;
        // Only a version below `releases`, wherever the link may point.
        let version = target.file_name()?.to_str()?.parse::<Version>().ok()?;
        let release = self.dir.join("releases").join(version.to_string());
        release.is_dir().then_some(release)
    }

    /// Installs the release in the bundle at `from`, a path or URL, so that the next start tries
    /// it: fetched, verified, unpacked, tried out by `exercise`, placed, and named, in this order.
    ///
    /// # Errors
    /// If it is refused or a file cannot be written; what ran before still runs.
    pub fn install(
        &self,
        from: &str,
        trust: &Trust,
        allow_downgrade: bool,
        exercise: &dyn Fn(&Path, Version) -> Result<(), UpdateError>,
        each: &mut dyn FnMut(Step),
    ) -> Result<Version, UpdateError> {
        let _lock = self.lock()?;
        let staging = self.fresh_staging()?;
        let part = self.dir.join("bundle.part");
        let file = download::bring(from, &part, bundle::MAX_BYTES, trust.pinned.as_deref());
        let unpacked = file.map_err(UpdateError::from).and_then(|file| {
            each(Step::Fetched);
            Ok(bundle::unpack(file, trust, &staging)?)
        });
        let _ = fs::remove_file(&part);
        let manifest = unpacked?;
        each(Step::Unpacked);
        self.ensure_suitable(&manifest, allow_downgrade)?;
        let program = staging.join(PROGRAM);
        fs::set_permissions(&program, Permissions::from_mode(0o755)).map_err(at(&program))?;
        exercise(&program, manifest.version)?;
        each(Step::Tried);
        let releases = self.dir.join("releases");
        let place = releases.join(manifest.version.to_string());
        if bundle::verify_dir(&place, trust).ok().as_ref() == Some(&manifest) {
            // Left from a time that was cut short, or given up before.
            fs::remove_dir_all(&staging).map_err(at(&staging))?;
        } else {
            if [self.link("current"), self.link("previous")].contains(&Some(place.clone())) {
                return Err(UpdateError::Taken(manifest.version));
            }
            if place.exists() {
                fs::remove_dir_all(&place).map_err(at(&place))?;
            }
            fs::rename(&staging, &place).map_err(at(&place))?;
            bundle::sync_dir(&releases)?;
        }
        each(Step::Placed);
        self.set_link("trial", &place)?;
        self.write_attempts(0)?;
        each(Step::Staged);
        self.prune()?;
        Ok(manifest.version)
    }

    /// Goes back from the current release to the one before, or to the packaged program; gives up
    /// a trial. Gives the version in use then, `None` for the packaged program.
    ///
    /// # Errors
    /// If no release is in use, or a file cannot be written.
    pub fn roll_back(&self) -> Result<Option<Version>, UpdateError> {
        let _lock = self.lock()?;
        let trial = self.dir.join("trial");
        if fs::symlink_metadata(&trial).is_ok() {
            fs::remove_file(&trial).map_err(at(&trial))?;
            self.write_attempts(0)?;
            return Ok(self.link("current").and_then(|release| version_of(&release)));
        }
        if self.link("previous").is_some() {
            self.rename("previous", "current")?;
        } else if self.link("current").is_some() {
            let current = self.dir.join("current");
            fs::remove_file(&current).map_err(at(&current))?;
            bundle::sync_dir(&self.dir)?;
        } else {
            return Err(UpdateError::NoPrevious);
        }
        self.write_attempts(0)?;
        Ok(self.link("current").and_then(|release| version_of(&release)))
    }

    fn ensure_suitable(&self, new: &Manifest, allow_downgrade: bool) -> Result<(), UpdateError> {
        let has_program = new.files.iter().any(|file| file.name == PROGRAM);
        if new.kind != Kind::Program || new.name != NAME || !has_program {
            return Err(UpdateError::NotARelease(format!("{} {}", new.name, new.version)));
        }
        let wanted = std::env::consts::ARCH;
        if let Some(is) = new.arch.as_ref().filter(|is| *is != wanted) {
            return Err(UpdateError::Arch { is: is.clone(), wanted });
        }
        let current = self.link("current").and_then(|release| version_of(&release));
        // Below the package nothing would be started, so that an older one proves nothing.
        let installed = packaged().max(current.filter(|_| !allow_downgrade));
        match installed {
            Some(installed) if new.version <= installed => {
                Err(UpdateError::Downgrade { new: new.version, installed })
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> Result<File, UpdateError> {
        let releases = self.dir.join("releases");
        fs::create_dir_all(&releases).map_err(at(&releases))?;
        let path = self.dir.join(".lock");
        let lock = File::create(&path).map_err(at(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(lock),
            Err(_) => Err(UpdateError::Busy { dir: self.dir.clone() }),
        }
    }

    fn fresh_staging(&self) -> Result<PathBuf, UpdateError> {
        let staging = self.dir.join("releases").join(".staging");
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(at(&staging))?;
        }
        fs::create_dir(&staging).map_err(at(&staging))?;
        Ok(staging)
    }

    /// Removes releases that nothing names.
    fn prune(&self) -> Result<(), UpdateError> {
        let kept = ["trial", "current", "previous"].map(|name| self.link(name));
        let releases = self.dir.join("releases");
        for entry in fs::read_dir(&releases).map_err(at(&releases))?.flatten() {
            if !kept.iter().flatten().any(|kept| *kept == entry.path()) {
                fs::remove_dir_all(entry.path()).map_err(at(&entry.path()))?;
            }
        }
        Ok(())
    }

    fn set_link(&self, name: &str, release: &Path) -> Result<(), UpdateError> {
        let new = self.dir.join(format!("{name}.new"));
        let target = Path::new("releases").join(release.file_name().unwrap_or_default());
        // One may have stayed from a time that was cut short.
        let _ = fs::remove_file(&new);
        symlink(target, &new).map_err(at(&new))?;
        self.rename(&format!("{name}.new"), name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), UpdateError> {
        let to = self.dir.join(to);
        fs::rename(self.dir.join(from), &to).map_err(at(&to))?;
        Ok(bundle::sync_dir(&self.dir)?)
    }

    fn write_attempts(&self, attempts: u32) -> Result<(), UpdateError> {
        let path = self.dir.join("attempts");
        let write = || {
            fs::create_dir_all(&self.dir)?;
            let new = path.with_extension("new");
            let mut file = File::create(&new)?;
            io::Write::write_all(&mut file, format!("{attempts}\n").as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(at(&path))
    }
}

/// Version of the release in a directory, which is called so.
pub fn version_of(release: &Path) -> Option<Version> {
    release.file_name()?.to_str()?.parse().ok()
}

/// Version of this program.
fn packaged() -> Option<Version> {
    env!("CARGO_PKG_VERSION").parse().ok()
}

/// Watches a door until it has been healthy for a while, and then says so to the releases.
pub struct Probation {
    releases: Option<Releases>,
    since: Option<Uptime>,
}

impl Probation {
    /// Begins with a door that has not been healthy yet.
    pub const fn new(releases: Releases) -> Self {
        Self { releases: Some(releases), since: None }
    }

    /// Sees a decision. Once there was no fault for [`HEALTHY_AFTER`], the start is confirmed, on
    /// a thread of its own: the control loop does not wait for a disk.
    pub fn see(&mut self, decision: &Decision) {
        if matches!(decision.state, State::Starting { .. } | State::Fault { .. }) {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(decision.at);
        if decision.at.since(since) < HEALTHY_AFTER {
            return;
        }
        let Some(releases) = self.releases.take() else { return };
        let confirm = move || {
            let running = std::env::var(ENVIRONMENT).ok();
            match releases.confirm(running.as_deref()) {
                Ok(()) => end_deadline(),
                Err(error) => tracing::warn!(%error, "a healthy start cannot be recorded"),
            }
        };
        if let Err(error) = thread::Builder::new().name("probation".to_owned()).spawn(confirm) {
            tracing::warn!(%error, "a healthy start cannot be recorded");
        }
    }
}

/// Has the kernel end this process after [`TRIAL_FOR`], whatever program it has become by then,
/// unless [`end_deadline`] is called: alarms outlive exec (alarm(2)).
pub fn begin_deadline() {
    // SAFETY: alarm takes a number and touches no memory of ours.
    let _ = unsafe { libc::alarm(TRIAL_FOR.as_secs() as libc::c_uint) };
}

fn end_deadline() {
    // SAFETY: as above.
    let _ = unsafe { libc::alarm(0) };
}

/// Has the staged `program` of `version` do on this door what it must, beside the program that
/// runs: say its version, check the configuration and models (`arguments` names them) without the
/// camera, which is in use, and do no worse in the exam than `now`.
///
/// # Errors
/// If it fails at any of this, or takes too long.
pub fn exercise(
    program: &Path,
    version: Version,
    arguments: &[String],
    now: &Marks,
) -> Result<(), UpdateError> {
    let failed = |command: &str, why: String| UpdateError::Trial {
        version,
        command: command.to_owned(),
        why,
    };
    let ask = |command: &[&str]| {
        let name = command.join(" ");
        let mut child = Command::new(program);
        child.args(command).args(arguments).env("PAWLATCH__CAMERA__SOURCE", "");
        let out = run_within(&mut child, TRY_WITHIN).map_err(|e| failed(&name, e.to_string()))?;
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        let told = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        Err(failed(&name, format!("{}: {told}", out.status)))
    };
    let told = ask(&["--version"])?;
    if told.trim() != format!("{NAME} {version}") {
        return Err(failed("--version", format!("it says `{}`", told.trim())));
    }
    ask(&["check"])?;
    let told = ask(&["exam", "--json"])?;
    let marks: Marks = serde_json::from_str(told.trim())
        .map_err(|e| failed("exam", format!("its answer cannot be read: {e}")))?;
    let worse = marks.worse_than(now);
    if worse.is_empty() { Ok(()) } else { Err(failed("exam", worse.join("; "))) }
}

/// Pause before a program that somebody has open is started again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Runs `command` to its end, or kills it.
fn run_within(command: &mut Command, limit: Duration) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = loop {
        match command.spawn() {
            // What was just written may still be open in a child that is about to become another
            // program.
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && began.elapsed() < limit => {
                thread::sleep(BUSY_PAUSE);
            }
            spawned => break spawned?,
        }
    };
    // Read beside the waiting, or a child that says much would never end.
    let read = |mut pipe: Box<dyn io::Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = (&mut pipe).take(1 << 20).read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = child.stdout.take().map(|pipe| read(Box::new(pipe)));
    let stderr = child.stderr.take().map(|pipe| read(Box::new(pipe)));
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(format!("it took more than {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(20));
    };
    let join = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(Output { status, stdout: join(stdout), stderr: join(stderr) })
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> UpdateError {
    let path = path.to_owned();
    move |source| UpdateError::File { path, source }
}

#[cfg(test)]
mod tests {
    use pawlatch_core::door::DesiredLatch;

    use super::*;

    fn decision(seconds: u64, state: fn(Uptime) -> State) -> Decision {
        let at = Uptime::from_millis(seconds * 1_000);
        Decision {
            at,
            state: state(at),
            latch: DesiredLatch::Locked,
            target: None,
            proofs: Vec::new(),
            events: Vec::new(),
        }
    }

    #[test]
    fn only_a_minute_without_a_fault_is_healthy() {
        let dir = tempfile::tempdir().unwrap();
        let releases = Releases::at(dir.path().to_owned());
        releases.write_attempts(3).unwrap();
        let mut probation = Probation::new(releases.clone());
        for second in 0..59 {
            probation.see(&decision(second, |since| State::Idle { since }));
        }
        probation.see(&decision(59, |since| State::Starting { since }));
        for second in 60..120 {
            probation.see(&decision(second, |since| State::Idle { since }));
        }
        assert_eq!(releases.attempts(), 3, "59 s and 60 s less one, with a fault between");
        probation.see(&decision(121, |since| State::Idle { since }));
        let began = Instant::now();
        while releases.attempts() != 0 && began.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(releases.attempts(), 0);
    }
}
