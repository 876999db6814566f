//! `cargo xtask image`: an SD-card image for a Raspberry Pi.
//!
//! Debian arm64 with its maintainer scripts run, the package installed the same way, a read-only
//! root, and a data partition for what may change; see deploy/image. Needs root, mmdebstrap,
//! qemu-user-static (registered with the kernel, as Debian's package does), genimage, mtools,
//! e2fsprogs, cpio, zstd and xz; no loop device.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::bench::output;

/// Largest image, compressed, bytes.
const MAX_IMAGE_BYTES: u64 = 300_000_000;
/// What a door needs of Debian.
const PACKAGES: &str = "systemd-sysv,udev,dbus,kmod,e2fsprogs,fdisk,openssh-server,wpasupplicant,\
    iproute2,ca-certificates,tzdata,init-system-helpers,netbase,libstdc++6,systemd-timesyncd,\
    libnss-myhostname,firmware-brcm80211";
/// What is only unpacked: their scripts would build an initrd that is not used.
const UNPACKED: [&str; 3] = ["linux-image-arm64", "raspi-firmware", "busybox-static"];
/// What the kernel must load to reach the card, or the disk of an emulator.
const CARD_MODULES: &str = "bcm2835\nsdhci-iproc\nsdhci-brcmstb\nmmc_block\ncrc32c_generic\next4\noverlay\nvfat\nnls_ascii\nnls_cp437\nvirtio_pci\nvirtio_blk\n";
/// Programs of Debian that the initrd needs beside busybox.
const CHECKER: &str = "usr/sbin/e2fsck";

/// A board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Board {
    Pi3,
    Pi4,
    Pi5,
}

impl Board {
    /// The Debian release whose kernel and firmware know the board.
    const fn suite(self) -> &'static str {
        match self {
            Self::Pi3 | Self::Pi4 => "bookworm",
            Self::Pi5 => "trixie",
        }
    }

    /// Names of its device trees begin so.
    const fn device_trees(self) -> &'static str {
        match self {
            Self::Pi3 => "bcm2837",
            Self::Pi4 => "bcm2711",
            Self::Pi5 => "bcm2712",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Pi3 => "pi3",
            Self::Pi4 => "pi4",
            Self::Pi5 => "pi5",
        }
    }
}

/// Options of `cargo xtask image`.
#[derive(Args)]
pub struct ImageArgs {
    /// For which board. A Zero 2 W is a pi3.
    #[arg(long)]
    board: Board,
    /// The package to install, of `cargo xtask dist --target aarch64-unknown-linux-gnu`.
    #[arg(long)]
    deb: PathBuf,
    /// Where the image goes.
    #[arg(long, default_value = "target/image")]
    out: PathBuf,
    /// A Debian mirror.
    #[arg(long, default_value = "http://deb.debian.org/debian")]
    mirror: String,
    /// Take this Debian tree (a `.tar` of mmdebstrap) instead of making one.
    #[arg(long)]
    debian: Option<PathBuf>,
}

/// `cargo xtask image`.
pub fn run(root: &Path, args: &ImageArgs) -> Result<()> {
    let work = root.join(&args.out).join(args.board.name());
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let work = work.canonicalize()?;
    let deb = args.deb.canonicalize().with_context(|| args.deb.display().to_string())?;
    let base = match &args.debian {
        Some(tar) => tar.canonicalize()?,
        None => debian(args, &work)?,
    };
    let tree = work.join("root");
    fs::create_dir(&tree)?;
    super::run(Command::new("tar").arg("-xpf").arg(&base).arg("-C").arg(&tree))?;
    install(root, &tree, &deb)?;
    let unpacked = unpack(args, &work)?;
    let boot = work.join("boot");
    let version = kernel(args.board, &unpacked, &tree, &boot)?;
    initrd(root, &work, &tree, &unpacked, &version, &boot)?;
    configure(root, args.board, &boot)?;
    assemble(&work, &tree, &boot, args.board)?;
    Ok(())
}

/// Debian itself, every package configured by its own scripts under qemu-user.
fn debian(args: &ImageArgs, work: &Path) -> Result<PathBuf> {
    let tar = work.join("debian.tar");
    super::run(
        Command::new("mmdebstrap")
            .args(["--architectures=arm64", "--variant=minbase", "--mode=root"])
            .args(["--components=main,non-free-firmware", &format!("--include={PACKAGES}")])
            .arg("--aptopt=Apt::Install-Recommends \"false\"")
            .arg("--aptopt=APT::Sandbox::User \"root\"")
            .args(
                ["man", "locale", "doc", "info"]
                    .map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")),
            )
            .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
            .args(["--skip=check/qemu", args.board.suite()])
            .arg(&tar)
            .arg(&args.mirror),
    )?;
    Ok(tar)
}

/// Installs the package with its scripts, then lays deploy/image/root over the tree.
fn install(root: &Path, tree: &Path, deb: &Path) -> Result<()> {
    fs::copy(deb, tree.join("pawlatch.deb"))?;
    let chroot = |arguments: &[&str]| {
        super::run(
            Command::new("chroot")
                .arg(tree)
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        )
    };
    chroot(&["dpkg", "--install", "/pawlatch.deb"])?;
    fs::remove_file(tree.join("pawlatch.deb"))?;
    let over = root.join("deploy/image/root");
    super::run(Command::new("cp").arg("-r").arg(over.join(".")).arg(tree))?;
    chroot(&["systemctl", "enable", "pawlatch-first-boot", "systemd-networkd", "ssh"])?;
    // Made on the card, never shared by two of them.
    for entry in fs::read_dir(tree.join("etc/ssh"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("ssh_host_") {
            fs::remove_file(path)?;
        }
    }
    fs::write(tree.join("etc/machine-id"), "")?;
    fs::write(tree.join("etc/hostname"), "pawlatch\n")?;
    // No password opens anything.
    chroot(&["passwd", "--lock", "root"])?;
    for dir in ["data", "boot/firmware"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    for rubbish in ["var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(tree.join(rubbish)).or_else(ignore_missing)?;
        fs::create_dir_all(tree.join(rubbish))?;
    }
    Ok(())
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Downloads and unpacks kernel, firmware and busybox; gives where they are.
fn unpack(args: &ImageArgs, work: &Path) -> Result<PathBuf> {
    let apt = work.join("apt");
    for dir in ["lists/partial", "cache/archives/partial", "etc"] {
        fs::create_dir_all(apt.join(dir))?;
    }
    fs::write(apt.join("status"), "")?;
    fs::write(
        apt.join("etc/sources.list"),
        format!(
            "deb [arch=arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {} main \
             non-free-firmware\n",
            args.mirror,
            args.board.suite()
        ),
    )?;
    let dir = apt.display();
    let conf = apt.join("apt.conf");
    fs::write(
        &conf,
        format!(
            "Dir::State \"{dir}\";\nDir::State::lists \"{dir}/lists\";\n\
             Dir::State::status \"{dir}/status\";\nDir::Cache \"{dir}/cache\";\n\
             Dir::Etc::sourcelist \"{dir}/etc/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             APT::Architecture \"arm64\";\nAPT::Architectures {{ \"arm64\"; }};\n\
             APT::Sandbox::User \"root\";\n"
        ),
    )?;
    let apt_tool = |tool: &str| {
        let mut command = Command::new(tool);
        command.arg("-c").arg(&conf).current_dir(&apt);
        command
    };
    super::run(apt_tool("apt-get").args(["-qq", "update"]))?;
    let depends = output(apt_tool("apt-cache").args(["depends", UNPACKED[0]]))?;
    let image = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .context("linux-image-arm64 names no kernel")?;
    let kernel = format!("linux-image-{image}");
    super::run(apt_tool("apt-get").args(["-qq", "download", &kernel]).args(&UNPACKED[1..]))?;
    let unpacked = work.join("unpacked");
    for entry in fs::read_dir(&apt)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            super::run(Command::new("dpkg").arg("-x").arg(&path).arg(&unpacked))?;
        }
    }
    Ok(unpacked)
}

/// Puts kernel, device trees and firmware on the boot partition, and modules into the tree; gives
/// the kernel's version.
fn kernel(board: Board, unpacked: &Path, tree: &Path, boot: &Path) -> Result<String> {
    fs::create_dir(boot)?;
    let image = find(&unpacked.join("boot"), "vmlinuz-")?;
    let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = name.trim_start_matches("vmlinuz-").to_owned();
    fs::copy(&image, boot.join("vmlinuz"))?;
    let trees = unpacked.join(format!("usr/lib/linux-image-{version}/broadcom"));
    let mut found = 0;
    for entry in fs::read_dir(&trees)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(board.device_trees()) && name.ends_with(".dtb") {
            fs::copy(&path, boot.join(name))?;
            found += 1;
        }
    }
    ensure!(found > 0, "the kernel {version} knows no {board:?}");
    super::run(
        Command::new("cp").arg("-r").arg(unpacked.join("usr/lib/raspi-firmware/.")).arg(boot),
    )?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|dir| unpacked.join(dir).join(&version));
    let modules = modules.iter().find(|dir| dir.is_dir()).context("the kernel has no modules")?;
    fs::create_dir_all(tree.join("usr/lib/modules"))?;
    super::run(Command::new("cp").arg("-r").arg(modules).arg(tree.join("usr/lib/modules")))?;
    super::run(Command::new("depmod").arg("-b").arg(tree).arg(&version))?;
    Ok(version)
}

/// The first entry of `dir` whose name begins with `prefix`.
fn find(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let starts = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(starts)
        .with_context(|| format!("no {prefix}* in {}", dir.display()))
}

/// Busybox, the checker of file systems, the modules that lead to the card, and deploy/image/init.
fn initrd(
    root: &Path,
    work: &Path,
    tree: &Path,
    unpacked: &Path,
    version: &str,
    boot: &Path,
) -> Result<()> {
    let dir = work.join("initrd");
    for sub in ["bin", "usr/sbin", "lib"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    let busybox = ["usr/bin/busybox", "bin/busybox"].map(|path| unpacked.join(path));
    let busybox = busybox.iter().find(|path| path.exists()).context("no busybox")?;
    fs::copy(busybox, dir.join("bin/busybox"))?;
    fs::copy(root.join("deploy/image/init"), dir.join("init"))?;
    fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o755))?;
    fs::write(dir.join("modules"), CARD_MODULES)?;
    with_libraries(tree, &dir)?;
    let modules = tree.join("usr/lib/modules").join(version);
    let copies = dir.join("lib/modules").join(version);
    fs::create_dir_all(&copies)?;
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(modules.join(name), copies.join(name))?;
    }
    for module in CARD_MODULES.lines() {
        let shown = Command::new("modprobe")
            .arg("-d")
            .arg(tree)
            .args(["-S", version, "--show-depends", module])
            .output()?;
        // What is built in, or what this kernel does not have, needs no file.
        for line in String::from_utf8_lossy(&shown.stdout).lines() {
            let Some(path) = line.strip_prefix("insmod ") else { continue };
            let path = Path::new(path.trim());
            let relative =
                path.iter().skip_while(|part| *part != version).skip(1).collect::<PathBuf>();
            let to = copies.join(&relative);
            fs::create_dir_all(to.parent().context("no directory")?)?;
            fs::copy(modules.join(&relative), to)?;
        }
    }
    super::run(Command::new("depmod").arg("-b").arg(&dir).arg(version))?;
    let pack = "find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc --owner 0:0 --quiet | \
                zstd -q -19 -o \"$0\"";
    super::run(Command::new("sh").args(["-c", pack]).arg(boot.join("initrd.img")).current_dir(&dir))
}

/// Copies the checker and the libraries it names, as its own loader lists them.
fn with_libraries(tree: &Path, dir: &Path) -> Result<()> {
    let listed = output(Command::new("chroot").arg(tree).args([
        "/lib/ld-linux-aarch64.so.1",
        "--list",
        &format!("/{CHECKER}"),
    ]))?;
    let mut files = vec![format!("/{CHECKER}"), "/lib/ld-linux-aarch64.so.1".to_owned()];
    files.extend(listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
    for file in files {
        let to = dir.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("no directory")?)?;
        let from = fs::canonicalize(tree.join(file.trim_start_matches('/')))?;
        fs::copy(from, to)?;
    }
    // As on Debian itself, so that either path leads there.
    if !dir.join("sbin").exists() {
        symlink("usr/sbin", dir.join("sbin"))?;
    }
    Ok(())
}

fn configure(root: &Path, board: Board, boot: &Path) -> Result<()> {
    for name in ["pawlatch.txt", "pawlatch.toml"] {
        fs::copy(root.join("deploy/image").join(name), boot.join(name))?;
    }
    fs::write(
        boot.join("config.txt"),
        "[all]\narm_64bit=1\nkernel=vmlinuz\ninitramfs initrd.img followkernel\nenable_uart=1\n\
         upstream_kernel=1\ndtparam=watchdog=on\n",
    )?;
    // The line of the latch must not be a console's.
    let console = if board == Board::Pi3 { "ttyS1,115200" } else { "ttyS0,115200" };
    fs::write(
        boot.join("cmdline.txt"),
        format!("console=tty0 console={console} root=LABEL=root ro rootwait panic=10\n"),
    )?;
    Ok(())
}

fn assemble(work: &Path, tree: &Path, boot: &Path, board: Board) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(boot)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let files: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let image = format!("pawlatch-{}.img", board.name());
    // The data partition is last, and grows over the card at the first start.
    let config = format!(
        "image boot.vfat {{ vfat {{ label = \"BOOT\" extraargs = \"-F 32\" files = {{ {} }} }} size = \
         160M }}\n\
         image root.ext4 {{ ext4 {{ label = \"root\" use-mke2fs = true }} mountpoint = \"/\" size = \
         768M }}\n\
         image data.ext4 {{ ext4 {{ label = \"data\" use-mke2fs = true }} empty = true size = 64M }}\n\
         image {image} {{ hdimage {{ align = 1M }}\n\
         partition boot {{ partition-type = 0xC bootable = \"true\" image = \"boot.vfat\" }}\n\
         partition root {{ partition-type = 0x83 image = \"root.ext4\" }}\n\
         partition data {{ partition-type = 0x83 image = \"data.ext4\" }} }}\n",
        files.join(", ")
    );
    fs::write(work.join("genimage.cfg"), config)?;
    super::run(
        Command::new("genimage")
            .args(["--loglevel", "1", "--config", "genimage.cfg", "--inputpath"])
            .arg(boot)
            .arg("--rootpath")
            .arg(tree)
            .args(["--tmppath", "tmp", "--outputpath", "images"])
            .current_dir(work),
    )?;
    let images = work.join("images");
    // Slower levels save a tenth and take minutes.
    let level = env::var("PAWLATCH_XZ").unwrap_or_else(|_| "-6".to_owned());
    super::run(Command::new("xz").args(["-T0", "-k", "-f", &level, &image]).current_dir(&images))?;
    let packed = format!("{image}.xz");
    let sums = output(Command::new("sha256sum").args([&image, &packed]).current_dir(&images))?;
    fs::write(images.join("SHA256SUMS"), sums)?;
    let bytes = fs::metadata(images.join(&packed))?.len();
    eprintln!("image: {bytes} bytes compressed");
    ensure!(bytes <= MAX_IMAGE_BYTES, "the image is larger than {MAX_IMAGE_BYTES} bytes");
    println!("{}", images.join(packed).display());
    Ok(())
}
