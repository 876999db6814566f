//! `cargo xtask cuts`: boots the very image of a card in an emulator, and cuts its power again and
//! again while the door writes events.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::json;

/// Longest that the machine may take to have the door armed.
const ARMED_WITHIN: Duration = Duration::from_secs(1_200);
/// Size of the emulated card, so that the data partition has something to grow into.
const CARD_BYTES: u64 = 2 << 30;
/// Bytes of a sector, in which the partition table counts.
const SECTOR: u64 = 512;

/// Options of `cargo xtask cuts`.
#[derive(Args)]
pub struct CutsArgs {
    /// What `cargo xtask image` made: the directory with `boot` and `images` in it.
    #[arg(long)]
    image_dir: PathBuf,
    /// How often the power is cut.
    #[arg(long, default_value_t = 20)]
    cuts: u32,
    /// The moments follow from this.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest from the first acknowledged event to the cut, seconds.
    #[arg(long, default_value_t = 40)]
    within: u64,
    /// Where the result goes.
    #[arg(long, default_value = "docs/power-cuts.json")]
    out: PathBuf,
}

/// `cargo xtask cuts`.
pub fn run(root: &Path, args: &CutsArgs) -> Result<()> {
    let card = args.image_dir.join("card.img");
    prepare(root, &args.image_dir, &card)?;
    let mut random = args.seed.max(1);
    let (mut acknowledged, mut found) = (0, Vec::new());
    for cut in 1..=args.cuts {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = Duration::from_millis((random >> 33) % (args.within * 1_000));
        let boot = boot(&args.image_dir, &card, Some(after))?;
        eprintln!("cut {cut}: {boot:?}");
        ensure!(
            boot.have >= acknowledged,
            "boot {cut}: {} events of {acknowledged} acknowledged ones",
            boot.have
        );
        acknowledged = boot.acknowledged.max(boot.have);
        found.push(boot);
    }
    // What the last cut left is seen by one more start.
    let last = boot(&args.image_dir, &card, Some(Duration::ZERO))?;
    ensure!(last.have >= acknowledged, "the last start finds {} of {acknowledged}", last.have);
    found.push(last);
    let list = |of: fn(&Boot) -> f64| -> Vec<f64> { found.iter().map(of).collect() };
    let result = json!({
        "command": format!(
            "cargo xtask cuts --cuts {} --seed {} --within {}",
            args.cuts, args.seed, args.within
        ),
        "what": "the image's kernel, initrd and partitions in qemu (virt, TCG); qemu killed while \
                 events are written; every event that another process had read is there at the \
                 next start",
        "cuts": args.cuts,
        "seed": args.seed,
        "events_acknowledged": acknowledged,
        "events_lost": 0,
        "seconds_to_system": list(|b| b.up),
        "seconds_to_armed_emulated": list(|b| b.armed),
        "data_file_system": found.iter().map(|b| b.checked.as_str()).collect::<Vec<_>>(),
        "locked_before_the_door": found.iter().all(|b| b.locked),
    });
    fs::write(root.join(&args.out), serde_json::to_string_pretty(&result)? + "\n")?;
    Ok(())
}

/// A copy of the image on a larger card. The root is untouched; the owner's configuration lies on
/// the boot partition, and the unit that presses the button on the data partition.
fn prepare(root: &Path, dir: &Path, card: &Path) -> Result<()> {
    let image = fs::read_dir(dir.join("images"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "img"))
        .context("no image; `cargo xtask image` makes one")?;
    let ours = root.join("xtask/cuts");
    super::run(Command::new("cp").arg("--sparse=always").arg(&image).arg(card))?;
    let mut file = OpenOptions::new().read(true).write(true).open(card)?;
    file.set_len(CARD_BYTES)?;
    let (boot, _) = partition(&mut file, 0)?;
    super::run(
        Command::new("mcopy")
            .args(["-o", "-i", &format!("{}@@{boot}", card.display())])
            .arg(ours.join("pawlatch.toml"))
            .arg("::pawlatch.toml"),
    )?;
    let tree = dir.join("data-tree");
    let units = tree.join("etc/systemd/system");
    let wants = units.join("multi-user.target.wants");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    fs::create_dir_all(&wants)?;
    fs::copy(ours.join("cuts.sh"), tree.join("cuts.sh"))?;
    fs::copy(ours.join("cuts.service"), units.join("cuts.service"))?;
    symlink("../cuts.service", wants.join("cuts.service"))?;
    let slow = units.join("pawlatch.service.d");
    fs::create_dir_all(&slow)?;
    fs::write(slow.join("slow.conf"), "[Service]\nWatchdogSec=30s\nTimeoutStartSec=600s\n")?;
    let (start, bytes) = partition(&mut file, 2)?;
    let data = dir.join("data-probe.ext4");
    File::create(&data)?.set_len(bytes)?;
    super::run(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", "data", "-E", "root_owner=0:0", "-d"])
            .args([&tree, &data]),
    )?;
    file.seek(SeekFrom::Start(start))?;
    std::io::copy(&mut File::open(&data)?, &mut file)?;
    file.flush()?;
    Ok(())
}

/// Start and length in bytes of a partition of the table in the first sector.
fn partition(card: &mut File, number: usize) -> Result<(u64, u64)> {
    let mut sector = [0; SECTOR as usize];
    card.seek(SeekFrom::Start(0))?;
    card.read_exact(&mut sector)?;
    let entry = &sector[446 + 16 * number..][..16];
    let number = |at: usize| {
        let bytes = [entry[at], entry[at + 1], entry[at + 2], entry[at + 3]];
        u64::from(u32::from_le_bytes(bytes)) * SECTOR
    };
    ensure!(entry[4] != 0, "the image has no such partition");
    Ok((number(8), number(12)))
}

/// What one start told.
#[derive(Debug, Default)]
struct Boot {
    /// Seconds until the unit that counts ran.
    up: f64,
    /// Seconds until the door was in service.
    armed: f64,
    /// Whether the latch was locked before.
    locked: bool,
    /// Events that were there at the start.
    have: u64,
    /// Events that another process had read when the power went.
    acknowledged: u64,
    /// What the check of the data partition said.
    checked: String,
}

/// Boots, and cuts the power `after` the first event that is acknowledged.
fn boot(dir: &Path, card: &Path, after: Option<Duration>) -> Result<Boot> {
    let console = dir.join("console.log");
    let mut machine = Machine(
        Command::new("qemu-system-aarch64")
            .args(["-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi"])
            .args(["-smp", "2", "-m", "1024", "-nographic", "-no-reboot", "-nic", "none"])
            .arg("-kernel")
            .arg(dir.join("boot/vmlinuz"))
            .arg("-initrd")
            .arg(dir.join("boot/initrd.img"))
            .args([
                "-append",
                "console=ttyAMA0 root=LABEL=root ro rootwait panic=10 loglevel=4 \
                               systemd.show_status=0 audit=0",
            ])
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw,cache=writeback", card.display()))
            .stdin(Stdio::null())
            .stdout(File::create(&console)?)
            .spawn()
            .context("cannot start qemu-system-aarch64")?,
    );
    let (started, mut first) = (Instant::now(), None);
    let mut reader = BufReader::new(File::open(&console)?);
    let (mut told, mut line) = (Boot::default(), String::new());
    loop {
        line.clear();
        while !line.ends_with('\n') {
            if reader.read_line(&mut line)? > 0 {
                continue;
            }
            ensure!(
                machine.0.try_wait()?.is_none(),
                "the machine ended; see {}",
                console.display()
            );
            let over = first.is_some_and(|at: Instant| after.is_some_and(|a| at.elapsed() >= a));
            if over {
                // As when the plug is pulled.
                machine.0.kill()?;
                machine.0.wait()?;
                return Ok(told);
            }
            if first.is_none() && started.elapsed() > ARMED_WITHIN {
                bail!("nothing was acknowledged; the console is {}", console.display());
            }
            thread::sleep(Duration::from_millis(20));
        }
        // A prompt for a login may stand before it.
        let text = line.trim_end();
        let text = text.find("cuts: ").map_or(text, |at| &text[at..]);
        let number = |prefix: &str| -> Option<f64> {
            text.strip_prefix(prefix)?.split_whitespace().next()?.parse().ok()
        };
        if let Some(up) = number("cuts: up ") {
            told.up = up;
        } else if let Some(armed) = number("cuts: armed ") {
            told.armed = armed;
        } else if let Some(have) = number("cuts: have ") {
            told.have = have as u64;
        } else if let Some(count) = number("cuts: acknowledged ") {
            told.acknowledged = count as u64;
            first.get_or_insert_with(Instant::now);
        } else if text.starts_with("cuts: lock") {
            told.locked = text.contains("success") && text.contains("active");
        } else if text.starts_with("data:") {
            told.checked = text.to_owned();
        } else if text.contains("cannot be mounted") || text.contains("INCONSISTENCY") {
            bail!("{text}");
        }
        println!("    {text}");
    }
}

/// The emulator; ended with the program.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
