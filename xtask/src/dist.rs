//! `cargo xtask dist`: everything that is handed out, from one checkout, the same bytes every
//! time.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::bench::output;

/// Largest program that is handed out, bytes.
const MAX_PROGRAM_BYTES: u64 = 25_000_000;
/// Largest package, bytes.
const MAX_DEB_BYTES: u64 = 40_000_000;
/// Newest symbol version of the C library that the program may need: Debian 12, Raspberry Pi OS of
/// 2023, Ubuntu 22.04 (JetPack 6) all have it.
const MAX_GLIBC: (u32, u32) = (2, 35);

/// A machine the project is built for.
struct Machine {
    target: &'static str,
    /// As Debian names it.
    deb: &'static str,
    /// As `std::env::consts::ARCH` names it, which is what a bundle says.
    arch: &'static str,
    /// Prefix of Debian's cross tools.
    tools: &'static str,
}

const MACHINES: [Machine; 3] = [
    Machine {
        target: "aarch64-unknown-linux-gnu",
        deb: "arm64",
        arch: "aarch64",
        tools: "aarch64-linux-gnu-",
    },
    Machine {
        target: "armv7-unknown-linux-gnueabihf",
        deb: "armhf",
        arch: "arm",
        tools: "arm-linux-gnueabihf-",
    },
    Machine {
        target: "x86_64-unknown-linux-gnu",
        deb: "amd64",
        arch: "x86_64",
        tools: "x86_64-linux-gnu-",
    },
];

/// Options of `cargo xtask dist`.
#[derive(Args)]
pub struct DistArgs {
    /// For which machine: aarch64-unknown-linux-gnu, armv7-unknown-linux-gnueabihf or
    /// x86_64-unknown-linux-gnu.
    #[arg(long, default_value = env!("HOST"))]
    target: String,
    /// Package a program that is built already (with symbols) instead of building it.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where everything goes.
    #[arg(long, default_value = "target/dist")]
    out: PathBuf,
    /// Without the Debian package, which needs cargo-deb.
    #[arg(long)]
    no_deb: bool,
}

/// `cargo xtask dist`.
pub fn run(root: &Path, args: &DistArgs) -> Result<()> {
    let root = &root.canonicalize()?;
    let machine = machine(&args.target)?;
    let epoch = commit_time(root)?;
    let target_dir = super::target_dir(root);
    if !args.no_deb {
        output(Command::new("cargo-deb").arg("--version"))
            .context("cargo-deb is needed: cargo install --locked cargo-deb --version 3.8.0")?;
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build(root, machine, "pawlatch/hardware")?,
    };
    let version = version(root)?;
    let out = root.join(&args.out).join(machine.deb);
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;

    // cargo-deb looks for what is made here where Cargo would have put it.
    let made = target_dir.join(machine.target).join("release");
    fs::create_dir_all(&made)?;
    let stripped = strip(machine, &program, &out, &made)?;
    ensure_portable(machine, &stripped)?;
    let packages = packages(root, machine)?;
    fs::write(made.join("sbom.cdx.json"), sbom(&packages, &version, machine)?)?;
    gzip(&made.join("THIRD-PARTY.gz"), licences(&packages)?.as_bytes())?;
    gzip(&made.join("changelog.gz"), changelog(&version, &epoch)?.as_bytes())?;
    gzip(&made.join("pawlatch.1.gz"), &fs::read(root.join("deploy/pawlatch.1"))?)?;
    for name in ["sbom.cdx.json", "THIRD-PARTY.gz"] {
        fs::copy(made.join(name), out.join(name))?;
    }
    tarball(root, &out, &stripped, &version, machine, &epoch)?;
    bundle(&out, &stripped, &version, machine, &epoch)?;
    if !args.no_deb {
        deb(root, &out, &target_dir, machine, &epoch)?;
    }
    sums(&out)?;
    ensure_small(&out, &stripped)?;
    println!("{}", out.display());
    Ok(())
}

/// The program for `target`, with these features of the door besides its own, as it is handed out
/// but not stripped. It stays where it is until the next build.
pub fn program(root: &Path, target: &str, features: &str) -> Result<PathBuf> {
    build(&root.canonicalize()?, machine(target)?, features)
}

fn machine(target: &str) -> Result<&'static Machine> {
    MACHINES
        .iter()
        .find(|machine| machine.target == target)
        .with_context(|| format!("{target} is not a machine of this project"))
}

/// Builds the program with `features`; gives its path.
fn build(root: &Path, machine: &Machine, features: &str) -> Result<PathBuf> {
    let mut command = super::cargo_command();
    command
        .args(["build", "--release", "--locked", "--package", "pawlatch"])
        .args(["--features", features, "--target", machine.target])
        // Libraries in C are built anew whenever it changes, and with them nearly all: so it is the
        // packages that bear the commit's time, and the program none.
        .env("SOURCE_DATE_EPOCH", "0")
        .env("CARGO_INCREMENTAL", "0")
        .current_dir(root);
    let places = places(root)?;
    command.env("CARGO_ENCODED_RUSTFLAGS", renamed(&places, "--remap-path-prefix").join("\x1f"));
    for (name, value) in environment(machine, &places) {
        // Whoever has set one knows better.
        if env::var_os(&name).is_none() {
            command.env(name, value);
        }
    }
    super::run(&mut command)?;
    Ok(super::target_dir(root).join(machine.target).join("release/pawlatch"))
}

/// Where on this machine the program's sources are, and what they are called in the program; of
/// two that fit, the later counts.
fn places(root: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let mut places = vec![(root.to_owned(), "/pawlatch")];
    // The directory of an index is named after its address, which differs from machine to machine.
    for index in fs::read_dir(home.join("registry/src")).into_iter().flatten() {
        places.push((index?.path(), "/deps"));
    }
    places.push((root.join(super::target_dir(root)), "/made"));
    Ok(places)
}

/// The options that make a compiler write those names.
fn renamed(places: &[(PathBuf, &str)], option: &str) -> Vec<String> {
    places.iter().map(|(path, name)| format!("{option}={}={name}", path.display())).collect()
}

/// What Cargo, cc and bindgen must know: what C calls the sources, and Debian's cross tools.
fn environment(machine: &Machine, places: &[(PathBuf, &str)]) -> Vec<(String, String)> {
    let lower = machine.target.replace('-', "_");
    let upper = lower.to_uppercase();
    let flags = format!("'{}'", renamed(places, "-ffile-prefix-map").join("' '"));
    let mut variables = vec![
        ("CC_SHELL_ESCAPED_FLAGS".to_owned(), "1".to_owned()),
        (format!("CFLAGS_{lower}"), flags.clone()),
        (format!("CXXFLAGS_{lower}"), flags),
    ];
    if machine.target != env!("HOST") {
        let tool = |name: &str| format!("{}{name}", machine.tools);
        let system = machine.tools.trim_end_matches('-');
        variables.extend([
            (format!("CARGO_TARGET_{upper}_LINKER"), tool("gcc")),
            (format!("CC_{lower}"), tool("gcc")),
            (format!("CXX_{lower}"), tool("g++")),
            (format!("AR_{lower}"), tool("ar")),
            (
                format!("BINDGEN_EXTRA_CLANG_ARGS_{lower}"),
                format!("--target={system} -I/usr/{system}/include"),
            ),
        ]);
    }
    variables
}

/// Splits the symbols off, which stay here for whoever reads a backtrace; gives the stripped
/// program.
fn strip(machine: &Machine, program: &Path, out: &Path, made: &Path) -> Result<PathBuf> {
    let stripped = out.join("pawlatch");
    let symbols = out.join("pawlatch.debug");
    // The host's own tools have no prefix everywhere.
    let tool = |name: &str| {
        let prefixed = format!("{}{name}", machine.tools);
        let host = machine.target == env!("HOST");
        if host { name.to_owned() } else { prefixed }
    };
    let objcopy = tool("objcopy");
    super::run(Command::new(&objcopy).arg("--only-keep-debug").arg(program).arg(&symbols))?;
    super::run(Command::new(tool("strip")).arg("-o").arg(&stripped).arg(program))?;
    let link = format!("--add-gnu-debuglink={}", symbols.display());
    super::run(Command::new(&objcopy).arg(link).arg(&stripped))?;
    if made.join("pawlatch") != program {
        fs::copy(program, made.join("pawlatch"))?;
    }
    fs::copy(&stripped, made.join("pawlatch.stripped"))?;
    Ok(stripped)
}

/// Makes sure that the program runs on the oldest system it is for.
fn ensure_portable(machine: &Machine, program: &Path) -> Result<()> {
    let host = machine.target == env!("HOST");
    let readelf = if host { "readelf".to_owned() } else { format!("{}readelf", machine.tools) };
    let text = output(Command::new(readelf).args(["--version-info", "--wide"]).arg(program))?;
    let newest = text
        .split("GLIBC_")
        .skip(1)
        .filter_map(|rest| {
            let number = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
            let (major, minor) = number.split_once('.')?;
            Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
        })
        .max()
        .unwrap_or((0, 0));
    eprintln!("needs glibc {}.{}", newest.0, newest.1);
    ensure!(newest <= MAX_GLIBC, "the program needs a glibc newer than {MAX_GLIBC:?}");
    Ok(())
}

/// The packages in the program, as `cargo metadata` describes them, by name and version.
fn packages(root: &Path, machine: &Machine) -> Result<BTreeMap<(String, String), Value>> {
    let text = output(
        super::cargo_command()
            .args(["metadata", "--format-version=1", "--locked"])
            .args(["--features", "pawlatch/hardware", "--filter-platform", machine.target])
            .current_dir(root),
    )?;
    let metadata: Value = serde_json::from_str(&text)?;
    let tree = output(
        super::cargo_command()
            .args(["tree", "--locked", "--package", "pawlatch", "--edges", "normal"])
            .args(["--features", "hardware", "--target", machine.target])
            .args(["--prefix", "none", "--format", "{p}"])
            .current_dir(root),
    )?;
    let linked: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().context("no packages")? {
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let id = (text("name"), text("version"));
        if linked.contains(&(id.0.as_str(), id.1.as_str())) {
            found.insert(id, package.clone());
        }
    }
    ensure!(found.len() > 50, "only {} packages found", found.len());
    Ok(found)
}

/// A software bill of materials, CycloneDX 1.5.
fn sbom(
    packages: &BTreeMap<(String, String), Value>,
    version: &str,
    machine: &Machine,
) -> Result<String> {
    let ours = |name: &str| name.starts_with("pawlatch");
    let components: Vec<Value> = packages
        .iter()
        .filter(|((name, _), _)| !ours(name))
        .map(|((name, version), package)| {
            json!({
                "type": "library",
                "name": name,
                "version": version,
                "purl": format!("pkg:cargo/{name}@{version}"),
                "bom-ref": format!("pkg:cargo/{name}@{version}"),
                "licenses": [{ "expression": spdx(package) }],
                "externalReferences": package["repository"].as_str().map_or(json!([]), |url| {
                    json!([{ "type": "vcs", "url": url }])
                }),
            })
        })
        .collect();
    let bom = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "name": "pawlatch",
            "version": version,
            "purl": format!("pkg:cargo/pawlatch@{version}?target={}", machine.target),
            "licenses": [{ "expression": "MIT OR Apache-2.0" }],
        } },
        "components": components,
    });
    Ok(serde_json::to_string_pretty(&bom)? + "\n")
}

/// A package's licence; older ones write `/` for OR.
fn spdx(package: &Value) -> String {
    package["license"].as_str().unwrap_or("NOASSERTION").replace('/', " OR ")
}

/// The licences of everything in the program, each text once, with who is under it.
fn licences(packages: &BTreeMap<(String, String), Value>) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::from("Packages in this program, and their licences\n\n");
    for ((name, version), package) in packages {
        if name.starts_with("pawlatch") {
            continue;
        }
        list.push_str(&format!("{name} {version}: {}\n", spdx(package)));
        let manifest = package["manifest_path"].as_str().context("no manifest_path")?;
        let dir = Path::new(manifest).parent().context("no directory")?;
        let mut files: Vec<PathBuf> =
            fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            let called = file.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
            if ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|w| called.starts_with(w)) {
                let text = String::from_utf8_lossy(&fs::read(file)?).trim().to_owned();
                texts.entry(text).or_default().push(format!("{name} {version}"));
            }
        }
    }
    for (text, mut names) in texts {
        names.dedup();
        list.push_str(&format!("\n{}\n{}\n\n{text}\n", "=".repeat(78), names.join(", ")));
    }
    Ok(list)
}

/// The changelog in Debian's form; ours is in CHANGELOG.md.
fn changelog(version: &str, epoch: &str) -> Result<String> {
    let date = output(Command::new("date").args(["-Ru", "-d", &format!("@{epoch}")]))?;
    Ok(format!(
        "pawlatch ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {}\n",
        date.trim()
    ))
}

/// As in daemon/Cargo.toml.
const MAINTAINER: &str = "Pawlatch maintainers <pawlatch@users.noreply.github.com>";

/// Program, models, units, configuration and licences for a system without packages.
fn tarball(
    root: &Path,
    out: &Path,
    program: &Path,
    version: &str,
    machine: &Machine,
    epoch: &str,
) -> Result<()> {
    let name = format!("pawlatch-{version}-{}", machine.target);
    let tree = out.join(&name);
    let copies = [
        ("models", "share/pawlatch/models"),
        ("systemd", "systemd"),
        ("deploy/debian/pawlatch.toml", "pawlatch.toml"),
        ("deploy/pawlatch.toml", "share/doc/pawlatch/pawlatch.toml"),
        ("deploy/pawlatch.1", "share/man/man1/pawlatch.1"),
        ("deploy/install.sh", "install.sh"),
        ("docs", "share/doc/pawlatch/docs"),
        ("README.md", "share/doc/pawlatch/README.md"),
        ("CHANGELOG.md", "share/doc/pawlatch/CHANGELOG.md"),
        ("LICENSE-MIT", "share/doc/pawlatch/LICENSE-MIT"),
        ("LICENSE-APACHE", "share/doc/pawlatch/LICENSE-APACHE"),
    ];
    for (from, to) in copies {
        copy(&root.join(from), &tree.join(to)).with_context(|| from.to_owned())?;
    }
    copy(program, &tree.join("bin/pawlatch"))?;
    copy(&out.join("THIRD-PARTY.gz"), &tree.join("share/doc/pawlatch/THIRD-PARTY.gz"))?;
    tar(out, &format!("{name}.tar.gz"), epoch, &[&name])?;
    fs::remove_dir_all(&tree)?;
    Ok(())
}

/// The program as a bundle that a door can install once it is signed; see docs/updates.md.
fn bundle(out: &Path, program: &Path, version: &str, machine: &Machine, epoch: &str) -> Result<()> {
    let sum = output(Command::new("sha256sum").arg(program))?;
    let sha256 = sum.split(' ').next().unwrap_or_default();
    let bytes = fs::metadata(program)?.len();
    let manifest = format!(
        "bundle = 1\nkind = \"program\"\nname = \"pawlatch\"\nversion = \"{version}\"\n\
         arch = \"{}\"\n\n[[files]]\nname = \"pawlatch\"\nbytes = {bytes}\nsha256 = \"{sha256}\"\n",
        machine.arch
    );
    fs::write(out.join("bundle.toml"), manifest)?;
    let name = format!("pawlatch-{version}-{}.bundle.tar.gz", machine.arch);
    // minisign asks for the key's password, or reads it from a pipe as it does for CI.
    if let Some(key) = env::var_os("PAWLATCH_SIGNING_KEY") {
        super::run(
            Command::new("minisign")
                .args(["-S", "-m", "bundle.toml", "-s"])
                .arg(key)
                .args(["-t", &format!("pawlatch {version} {}", machine.arch)])
                .current_dir(out),
        )?;
        tar(out, &name, epoch, &["bundle.toml", "bundle.toml.minisig", "pawlatch"])
    } else {
        eprintln!("not signed: PAWLATCH_SIGNING_KEY is not set");
        tar(out, &name, epoch, &["bundle.toml", "pawlatch"])
    }
}

/// A `.tar.gz` that is the same for the same content.
fn tar(dir: &Path, name: &str, epoch: &str, members: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar")
        .args(["--create", "--format=ustar", "--sort=name", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--mode=u=rwX,go=rX", &format!("--mtime=@{epoch}")])
        .args(members)
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run tar")?;
    let file = fs::File::create(dir.join(name))?;
    let piped = tar.stdout.take().context("tar has no output")?;
    super::run(Command::new("gzip").args(["-9n"]).stdin(piped).stdout(file))?;
    ensure!(tar.wait()?.success(), "tar failed");
    Ok(())
}

fn gzip(path: &Path, bytes: &[u8]) -> Result<()> {
    let file = fs::File::create(path)?;
    let mut gzip = Command::new("gzip").args(["-9n"]).stdin(Stdio::piped()).stdout(file).spawn()?;
    gzip.stdin.take().context("gzip has no input")?.write_all(bytes)?;
    ensure!(gzip.wait()?.success(), "gzip failed");
    Ok(())
}

fn deb(root: &Path, out: &Path, target_dir: &Path, machine: &Machine, epoch: &str) -> Result<()> {
    let mut command = Command::new("cargo-deb");
    command
        .args(["--no-build", "--no-strip", "--target", machine.target, "--output"])
        .arg(out)
        .env("SOURCE_DATE_EPOCH", epoch)
        .env("CARGO_TARGET_DIR", target_dir)
        .current_dir(root.join("daemon"));
    super::run(&mut command)
}

fn sums(out: &Path) -> Result<()> {
    let mut names: Vec<String> = fs::read_dir(out)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let text = output(Command::new("sha256sum").args(&names).current_dir(out))?;
    fs::write(out.join("SHA256SUMS"), text)?;
    Ok(())
}

fn ensure_small(out: &Path, program: &Path) -> Result<()> {
    let bytes = fs::metadata(program)?.len();
    eprintln!("program: {bytes} bytes");
    ensure!(bytes <= MAX_PROGRAM_BYTES, "the program is larger than {MAX_PROGRAM_BYTES} bytes");
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            let bytes = fs::metadata(&path)?.len();
            eprintln!("package: {bytes} bytes");
            ensure!(bytes <= MAX_DEB_BYTES, "the package is larger than {MAX_DEB_BYTES} bytes");
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else {
        fs::create_dir_all(to.parent().context("no directory")?)?;
        fs::copy(from, to)?;
    }
    Ok(())
}

fn version(root: &Path) -> Result<String> {
    let text = fs::read_to_string(root.join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("version = \""));
    Ok(line.context("no version in Cargo.toml")?.trim_end_matches('"').to_owned())
}

/// Time of the commit that is built, seconds: everything that is made is dated by it.
fn commit_time(root: &Path) -> Result<String> {
    if let Ok(epoch) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(epoch);
    }
    let text = output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root))?;
    let epoch = text.trim();
    if epoch.is_empty() {
        bail!("not a git checkout; set SOURCE_DATE_EPOCH");
    }
    Ok(epoch.to_owned())
}
