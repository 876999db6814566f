//! Long jobs around the project. `cargo xtask --help` lists them.

mod arm;
mod bench;
mod count;
mod cuts;
mod dist;
mod emulate;
mod image;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// Long jobs around the project: each says what it needs and what it writes.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Cli {
    /// Play many simulated approaches with faults; prints one JSON object.
    ///
    /// Fails on the first violated invariant with the seed that shows it.
    Simulate {
        /// How many approaches.
        #[arg(long, default_value_t = 1_000_000)]
        approaches: u64,
        /// The first seed; the next worlds take the next ones.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Measure the door on real pictures and clips; writes docs/evaluation.* and
    /// tests/perception.json.
    ///
    /// Needs the pictures in ../shared/data, beside the project.
    Evaluate {
        /// The models to measure; without it the project's.
        #[arg(long)]
        models_dir: Option<PathBuf>,
        /// What they compute with: float, int8, or auto for what is quicker here. All but float
        /// write to a directory of that name in docs, and leave tests/perception.json.
        #[arg(long, default_value = "float")]
        precision: String,
    },
    /// Time our networks against onnxruntime, and every stage of the door; writes
    /// docs/performance.*.
    ///
    /// Needs python3, taskset and the pictures in ../shared/data; fetches onnxruntime into a
    /// virtual environment below the target directory.
    Bench {
        /// Frames that the whole door plays of each scene.
        #[arg(long, default_value_t = 600)]
        frames: u32,
        /// `pawlatch` of a release build, such as `dist` makes; built if it is not named.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// Replay every clip here and on an emulated aarch64, and compare each decision; writes
    /// docs/aarch64.json.
    ///
    /// Needs qemu-user-static, the libraries of libc6-dev-arm64-cross, and either a target and
    /// linker for aarch64 or a program that is built already.
    Arm {
        /// `pawlatch` for aarch64; built if it is not named.
        #[arg(long)]
        program: Option<PathBuf>,
        /// `pawlatch` for this machine, of the same commit; built if it is not named.
        #[arg(long)]
        here: Option<PathBuf>,
        /// Only the clips with these names. An emulated frame takes seconds.
        #[arg(long)]
        clip: Vec<String>,
    },
    /// Count the instructions that every network executes on aarch64, ours and plain tract's;
    /// writes docs/instructions.json and the table in docs/performance.md.
    ///
    /// Needs a C compiler, qemu-aarch64 with plugins (Debian's qemu-user; the static one of
    /// qemu-user-static has none) and what `arm` needs. Fourteen emulated inferences a network: long.
    Count {
        /// `pawlatch` for aarch64; built if it is not named.
        #[arg(long)]
        program: Option<PathBuf>,
        /// The emulator.
        #[arg(long, default_value = "qemu-aarch64")]
        qemu: PathBuf,
        /// Only the networks with these names.
        #[arg(long)]
        network: Vec<String>,
    },
    /// Run the kernels' tests under valgrind's memcheck: no read or write outside what was
    /// allocated, and nothing decided by memory that was not written.
    ///
    /// Checks the portable path and whatever instruction sets valgrind knows. Takes minutes.
    Memcheck,
    Emulate(emulate::Emulate),
    /// Boot the image of a card in an emulator and cut its power while events are written; writes
    /// docs/power-cuts.json. Needs qemu-system-aarch64, mtools and e2fsprogs.
    Cuts(cuts::CutsArgs),
    /// Make everything that is handed out for one machine: program, symbols, package, archive,
    /// bundle, bill of materials, licences and hashes, the same bytes every time.
    Dist(dist::DistArgs),
    /// Make an SD-card image for a Raspberry Pi. Needs root; see docs/deploy.md.
    Image(image::ImageArgs),
    /// Feed damaged input to the parsers with libFuzzer. Fails on the first crash and says which
    /// file shows it.
    Fuzz {
        /// Seconds per target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Count edges in the libraries too, such as those that decode pictures: builds all of them
        /// again, and searches deeper.
        #[arg(long)]
        whole: bool,
    },
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    match Cli::parse() {
        Cli::Simulate { approaches, seed } => {
            let (approaches, seed) = (approaches.to_string(), seed.to_string());
            let args = ["run", "--quiet", "--package", "pawlatch-tests", "--bin", "simulate", "--"];
            cargo(&root, args.into_iter().chain([approaches.as_str(), seed.as_str()]))
        }
        Cli::Evaluate { models_dir, precision } => {
            cargo(&root, ["build", "--package", "pawlatch", "--package", "pawlatch-tests"])?;
            let args = ["run", "--quiet", "--package", "pawlatch-tests", "--bin", "evaluate", "--"];
            let dir = models_dir.map_or_else(
                || Ok(root.join("models")),
                |dir| env::current_dir().map(|here| here.join(dir)),
            )?;
            let dir = dir.display().to_string();
            cargo(&root, args.into_iter().chain([dir.as_str(), precision.as_str()]))
        }
        Cli::Bench { frames, program } => bench::run(&root, frames, program),
        Cli::Arm { program, here, clip } => arm::run(&root, program, here, &clip),
        Cli::Count { program, qemu, network } => count::run(&root, program, &qemu, &network),
        Cli::Memcheck => {
            let runner = format!("CARGO_TARGET_{}_RUNNER", env!("HOST")).replace('-', "_");
            run(cargo_command()
                .args(["test", "--workspace", "--lib", "kernel_tests"])
                .env(runner.to_uppercase(), "valgrind --quiet --error-exitcode=9")
                .env("PAWLATCH_SLOW_CPU", "yes")
                .current_dir(&root))
        }
        Cli::Dist(args) => dist::run(&root, &args),
        Cli::Image(args) => image::run(&root, &args),
        Cli::Fuzz { seconds, whole } => fuzz(&root, seconds, whole),
        Cli::Emulate(args) => emulate::run(&args, &root),
        Cli::Cuts(args) => cuts::run(&root, &args),
    }
}

/// What libFuzzer needs of the compiler: counters at every edge of the program. These are options
/// of stable compilers; only sanitizers would need a nightly one.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table --cfg fuzzing";

fn fuzz(root: &Path, seconds: u32, whole: bool) -> Result<()> {
    let fuzz = root.join("fuzz");
    let mut target = target_dir(root);
    let mut build = cargo_command();
    build.args(["build", "--package", "pawlatch-fuzz"]).current_dir(root);
    if whole {
        // With a target named, build scripts and macros are built without the counters.
        build.args(["--target", env!("HOST")]).env("RUSTFLAGS", COVERAGE);
        target.push(env!("HOST"));
    } else {
        // Stands in for the compiler of the workspace's own crates, so that what they depend on is
        // taken as the tests built it.
        build.env("RUSTC_WORKSPACE_WRAPPER", fuzz.join("rustc")).env("COVERAGE", COVERAGE);
    }
    run(&mut build)?;
    std::fs::create_dir_all(fuzz.join("artifacts"))?;
    let targets = fuzz.join("fuzz_targets");
    let entries =
        targets.read_dir().with_context(|| format!("cannot list {}", targets.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|s| s.to_str()) else { continue };
        eprintln!("{name}, {seconds} seconds");
        let corpus = fuzz.join("corpus").join(name);
        std::fs::create_dir_all(&corpus)?;
        let seeds = fuzz.join("seeds").join(name);
        run(Command::new(target.join("debug").join(format!("fuzz-{name}")))
            .arg(&corpus)
            .args(seeds.is_dir().then_some(seeds))
            .arg(format!("-max_total_time={seconds}"))
            .args(["-rss_limit_mb=2048", "-timeout=10", "-artifact_prefix=artifacts/"])
            .args(["-verbosity=0", "-print_final_stats=1"])
            .current_dir(&fuzz))?;
    }
    Ok(())
}

fn cargo<'a>(root: &Path, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
    run(cargo_command().args(args).current_dir(root))
}

/// Where Cargo puts what it builds.
fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from)
}

fn cargo_command() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed");
    }
    Ok(())
}
