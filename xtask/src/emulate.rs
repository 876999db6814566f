//! The door on an emulated board: a real kernel, real V4L2 and GPIO devices, the shipped
//! units, real photographs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use image::imageops::FilterType;

use crate::bench::replace_part;
use crate::dist;

/// Prove the door on an emulated board; writes docs/emulation.md.
///
/// Needs qemu, what the head of xtask/emulate/prepare.sh lists, and the photographs in
/// ../shared/data; for arm64 a cross compiler and a standard library for
/// aarch64-unknown-linux-gnu. Takes a quarter of an hour and more, on top of the first build.
#[derive(Args)]
pub struct Emulate {
    /// Directory to work in.
    #[arg(long, default_value = "target/emulate")]
    dir: PathBuf,
    /// Processor of the board. arm64 is what the door runs on.
    #[arg(long, value_enum, default_value_t = Arch::Arm64)]
    arch: Arch,
    /// The program, built for that processor with the feature `hardware`; built if absent.
    #[arg(long)]
    program: Option<PathBuf>,
    /// The same with the feature `ordeal` besides, whose threads panic when asked to; built if
    /// absent and `panic` is to be proven.
    #[arg(long)]
    ordeal: Option<PathBuf>,
    /// The package, of `cargo xtask dist`; without it none is installed.
    #[arg(long)]
    deb: Option<PathBuf>,
    /// Which proofs, in the order of xtask/emulate/proof.sh: `reboot` kills the machine and starts
    /// it again, `pi` is a Raspberry Pi of its own. Without it all of them (`package` only with
    /// --deb), and the page is written.
    #[arg(long, value_delimiter = ',')]
    proofs: Vec<String>,
    /// Use /dev/kvm (amd64 only). Quick, but an emulator that hangs there is no fault of the
    /// door's.
    #[arg(long)]
    kvm: bool,
}

/// Processor of the emulated board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arch {
    /// As a Raspberry Pi or a Jetson.
    Arm64,
    /// As this machine.
    Amd64,
}

impl Arch {
    const fn name(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::Amd64 => "amd64",
        }
    }

    const fn target(self) -> &'static str {
        match self {
            Self::Arm64 => "aarch64-unknown-linux-gnu",
            Self::Amd64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// The emulator with its machine, and the name of its console.
    fn machine(self, kvm: bool) -> (&'static str, Vec<&'static str>, &'static str) {
        let tcg = ["-accel", "tcg,thread=multi"];
        match self {
            Self::Arm64 => {
                let machine = ["-M", "virt,gic-version=3", "-cpu", "cortex-a72"];
                ("qemu-system-aarch64", [&machine[..], &tcg].concat(), "ttyAMA0")
            }
            Self::Amd64 if kvm => {
                let machine = vec!["-M", "q35", "-cpu", "host", "-accel", "kvm"];
                ("qemu-system-x86_64", machine, "ttyS0")
            }
            Self::Amd64 => {
                let machine = ["-M", "q35", "-cpu", "max"];
                ("qemu-system-x86_64", [&machine[..], &tcg].concat(), "ttyS0")
            }
        }
    }
}

/// Size of the camera's pictures.
const SIZE: (u32, u32) = (640, 480);
/// Longest the guest may take.
const GUEST_LIMIT: Duration = Duration::from_secs(3_600);
/// What the photographs show, and how they are found: directory below ../shared/data, and which.
const SCENES: [(&str, &str); 3] =
    [("dog", "classify/val/dog"), ("cat", "classify/val/cat"), ("empty", "")];

/// Runs it.
pub fn run(args: &Emulate, root: &Path) -> Result<()> {
    let dir = std::path::absolute(&args.dir)?;
    fs::create_dir_all(&dir)?;
    let absolute = |path: &Option<PathBuf>| path.as_ref().map(std::path::absolute).transpose();
    let deb = absolute(&args.deb)?;
    let program = |given: &Option<PathBuf>, features: &str, name: &str| match given {
        Some(program) => Ok(std::path::absolute(program)?),
        None => {
            let built = dir.join(name);
            fs::copy(dist::program(root, args.arch.target(), features)?, &built)?;
            Ok::<_, anyhow::Error>(built)
        }
    };
    let shipped = program(&args.program, "pawlatch/hardware", "pawlatch")?;
    let mut wanted: Vec<&str> = args.proofs.iter().map(String::as_str).collect();
    if wanted.is_empty() {
        wanted = vec!["bad", "1", "6", "2", "panic", "3", "5", "reboot"];
        wanted.extend((args.arch == Arch::Arm64).then_some("pi"));
        wanted.extend(deb.is_some().then_some("package"));
    }
    let ordeal = wanted
        .contains(&"panic")
        .then(|| program(&args.ordeal, "pawlatch/hardware,pawlatch/ordeal", "ordeal"))
        .transpose()?;
    let script = |name: &str, arguments: &[&Path]| -> Result<()> {
        let status = Command::new("bash")
            .arg(root.join("xtask/emulate").join(name))
            .args(arguments)
            .env("CROSS", &dir)
            .env("ARCH", args.arch.name())
            .envs(ordeal.iter().map(|program| ("ORDEAL", program)))
            .envs(deb.iter().map(|deb| ("DEB", deb)))
            .current_dir(root)
            .status()?;
        ensure!(status.success(), "xtask/emulate/{name} failed");
        Ok(())
    };
    script("prepare.sh", &[])?;
    let frames = dir.join("frames");
    make_frames(&root.join("../shared/data"), &frames)?;
    let _ = fs::remove_file(dir.join("guest").join(args.arch.name()).join("disk.img"));
    script("guest.sh", &[&shipped, &frames])?;
    let start = |proofs: &str, until| boot(&dir, args.arch, args.kvm, proofs, until);
    // Those that need a machine of their own.
    let (alone, together): (Vec<&str>, Vec<&str>) =
        wanted.iter().partition(|proof| matches!(**proof, "pi" | "package"));
    let mut report = String::new();
    if together.contains(&"reboot") {
        report.push_str(&start(&together.join(","), Some("ready to be killed"))?);
        report.push_str(&start("again", None)?);
    } else if !together.is_empty() {
        report.push_str(&start(&together.join(","), None)?);
    }
    for proof in alone {
        report.push_str(&start(proof, None)?);
    }
    if !args.proofs.is_empty() {
        ensure!(!report.contains("] FAIL "), "a proof failed");
        return Ok(());
    }
    let failed = report.lines().filter(|line| line.contains("] FAIL ")).count();
    let path = root.join("docs/emulation.md");
    let mut page = fs::read_to_string(&path)?;
    replace_part(&mut page, "proofs", &proofs(args.arch, &report))?;
    fs::write(path, page)?;
    ensure!(failed == 0, "{failed} proofs failed; docs/emulation.md says which");
    Ok(())
}

/// Writes the camera's pictures: YUYV, BT.601 with limited range.
fn make_frames(data: &Path, frames: &Path) -> Result<()> {
    fs::create_dir_all(frames)?;
    for (name, place) in SCENES {
        let picture = if place.is_empty() { yard() } else { first_photo(&data.join(place))? };
        fs::write(frames.join(format!("{name}.yuyv")), yuyv(&picture))?;
    }
    // Somebody beside the dog: the dog on the left, a person's photograph on the right.
    let mut both = first_photo(&data.join(SCENES[0].1))?;
    let person = person(data)?;
    let half = SIZE.0 / 2;
    for (x, y, pixel) in both.enumerate_pixels_mut().filter(|(x, ..)| *x >= half) {
        *pixel = *person.get_pixel(x - half / 2, y);
    }
    fs::write(frames.join("person_dog.yuyv"), yuyv(&both))?;
    Ok(())
}

/// A lawn with a fence: structure, and nobody.
fn yard() -> image::RgbImage {
    image::RgbImage::from_fn(SIZE.0, SIZE.1, |x, y| {
        let speckle = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)) >> 7 & 15;
        let fence = y > 120 && y < 260 && x % 40 < 26;
        let [r, g, b] = if fence {
            [122, 92, 64]
        } else if y <= 180 {
            [150, 178, 205]
        } else {
            [70, 118, 58]
        };
        image::Rgb([r, g, b].map(|c| c + speckle as u8))
    })
}

fn first_photo(dir: &Path) -> Result<image::RgbImage> {
    let mut names: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    names.sort();
    let name = names.first().with_context(|| format!("{} is empty", dir.display()))?;
    Ok(fill(&image::open(name)?.to_rgb8()))
}

/// A photograph in which a person is boxed, and no dog.
fn person(data: &Path) -> Result<image::RgbImage> {
    let text = fs::read_to_string(data.join("detect/annotations.json"))?;
    let all: serde_json::Value = serde_json::from_str(&text)?;
    let id = |name: &str| {
        let named = |c: &&serde_json::Value| c["name"] == name;
        all["categories"].as_array()?.iter().find(named)?["id"].as_u64()
    };
    let (person, none) = (id("person").context("no persons are boxed")?, Vec::new());
    let boxes = all["annotations"].as_array().unwrap_or(&none);
    let large = boxes
        .iter()
        .filter(|b| b["category_id"].as_u64() == Some(person))
        .max_by(|a, b| area(a).total_cmp(&area(b)))
        .context("no person is boxed")?;
    let image = all["images"].as_array().unwrap_or(&none);
    let file = image.iter().find(|image| image["id"] == large["image_id"]);
    let file = file.and_then(|f| f["file_name"].as_str()).context("the photograph is missing")?;
    let path = [data.join("detect").join(file), data.join("detect/images").join(file)];
    let path = path.into_iter().find(|path| path.is_file()).context("the photograph is missing")?;
    Ok(fill(&image::open(path)?.to_rgb8()))
}

fn area(annotation: &serde_json::Value) -> f64 {
    let side = |n: usize| annotation["bbox"][n].as_f64().unwrap_or(0.0);
    side(2) * side(3)
}

/// The picture's middle, as large as the camera's.
fn fill(picture: &image::RgbImage) -> image::RgbImage {
    let filled = image::DynamicImage::ImageRgb8(picture.clone());
    filled.resize_to_fill(SIZE.0, SIZE.1, FilterType::CatmullRom).to_rgb8()
}

fn yuyv(picture: &image::RgbImage) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(picture.len() / 3 * 2);
    for pair in picture.as_raw().as_chunks::<6>().0 {
        let coded = [&pair[..3], &pair[3..]].map(|rgb| {
            let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(|v| f64::from(v) / 255.0);
            let y = 0.299 * r + 0.587 * g + 0.114 * b;
            [16.0 + 219.0 * y, 128.0 + 224.0 * (b - y) / 1.772, 128.0 + 224.0 * (r - y) / 1.402]
        });
        let [[y0, u0, v0], [y1, u1, v1]] = coded;
        bytes.extend([y0, (u0 + u1) / 2.0, y1, (v0 + v1) / 2.0].map(|v| v.round() as u8));
    }
    bytes
}

/// Boots the guest, prints and gives back what its proofs say; kills it at the line `until`.
fn boot(dir: &Path, arch: Arch, kvm: bool, proofs: &str, until: Option<&str>) -> Result<String> {
    let guest = dir.join("guest").join(arch.name());
    let (program, mut machine, tty) = arch.machine(kvm);
    let dtb = guest.join("bcm2837-rpi-3-b.dtb").display().to_string();
    let memory = if proofs == "pi" {
        machine = vec!["-M", "raspi3b", "-dtb", &dtb];
        "1024"
    } else {
        "2048"
    };
    let console = guest.join(format!("console-{proofs}.log"));
    let append = format!(
        "console={tty} panic=-1 loglevel=4 rdinit=/init systemd.show_status=0 mitigations=off \
         audit=0 iomem=relaxed door.proofs={proofs}"
    );
    let disk =
        format!("file={},if=virtio,format=raw,cache=writeback", guest.join("disk.img").display());
    let mut machine = Machine(
        Command::new(program)
            .args(machine)
            .args(["-m", memory, "-nographic", "-no-reboot"])
            .args(if proofs == "pi" {
                vec![]
            } else {
                vec!["-smp", "2", "-nic", "none", "-drive", &disk]
            })
            .arg("-kernel")
            .arg(guest.join("vmlinuz"))
            .arg("-initrd")
            .arg(guest.join("initrd.cpio"))
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(File::create(&console)?)
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start qemu")?,
    );
    let started = Instant::now();
    let mut reader = BufReader::new(File::open(&console)?);
    let (mut told, mut line) = (String::new(), String::new());
    loop {
        line.clear();
        while !line.ends_with('\n') {
            if reader.read_line(&mut line)? == 0 {
                if machine.0.try_wait()?.is_some() {
                    told.push_str("[- s] FAIL the machine ended before its proofs\n");
                    return Ok(told);
                }
                if started.elapsed() > GUEST_LIMIT {
                    let console = console.display();
                    writeln!(told, "[- s] FAIL the guest did not end; its console is {console}")?;
                    return Ok(told);
                }
                thread::sleep(Duration::from_millis(100));
            }
        }
        let text = line.trim_end();
        if text.starts_with('[') && text.contains(" s] ") || text.starts_with("    ") {
            println!("{text}");
            writeln!(told, "{text}")?;
        }
        if text.contains("== done") || until.is_some_and(|until| text.contains(until)) {
            // As when the plug is pulled; a Raspberry Pi here does not end by itself.
            machine.0.kill()?;
            machine.0.wait()?;
            return Ok(told);
        }
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

/// What the page says of a run.
fn proofs(arch: Arch, report: &str) -> String {
    let count = |word: &str| report.lines().filter(|line| line.contains(word)).count();
    format!(
        "`cargo xtask emulate --arch {}`: {} proofs hold, {} do not.\n\n```\n{report}```\n",
        arch.name(),
        count("] PASS "),
        count("] FAIL ")
    )
}
