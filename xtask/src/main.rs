//! Long jobs around the project. `cargo xtask --help` lists them.

mod emulate;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

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
        /// The models to measure.
        #[arg(long)]
        models_dir: Option<PathBuf>,
    },
    Emulate(emulate::Emulate),
    #[command(subcommand)]
    Fuzz(Fuzz),
}

/// Feed damaged input to the parsers (needs cargo-fuzz and a nightly compiler).
#[derive(Subcommand)]
enum Fuzz {
    /// Fuzz every target for a while.
    All {
        /// Seconds per target.
        #[arg(long, default_value_t = 20)]
        seconds: u32,
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
        Cli::Evaluate { models_dir } => {
            cargo(&root, ["build", "--package", "pawlatch", "--package", "pawlatch-tests"])?;
            let args = ["run", "--quiet", "--package", "pawlatch-tests", "--bin", "evaluate", "--"];
            let dir = models_dir.map(|dir| env::current_dir().map(|here| here.join(dir)));
            let dir = dir.transpose()?.map(|dir| dir.display().to_string());
            cargo(&root, args.into_iter().chain(dir.as_deref()))
        }
        Cli::Emulate(args) => emulate::run(&args, &root),
        Cli::Fuzz(Fuzz::All { seconds }) => fuzz(&root, seconds),
    }
}

fn fuzz(root: &Path, seconds: u32) -> Result<()> {
    let limit = format!("-max_total_time={seconds}");
    let targets = root.join("fuzz/fuzz_targets");
    let entries =
        targets.read_dir().with_context(|| format!("cannot list {}", targets.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(target) = path.file_stem().and_then(|s| s.to_str()) else { continue };
        cargo(root, ["+nightly", "fuzz", "run", target, "--", &limit])?;
    }
    Ok(())
}

fn cargo<'a>(root: &Path, args: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let args: Vec<&str> = args.into_iter().collect();
    // A toolchain can only be named to the cargo that chooses toolchains.
    let chosen = args.first().is_some_and(|a| a.starts_with('+'));
    let program = env::var("CARGO").ok().filter(|_| !chosen);
    let program = program.unwrap_or_else(|| "cargo".to_owned());
    let status = Command::new(&program)
        .args(&args)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    if !status.success() {
        bail!("`cargo {}` failed", args.join(" "));
    }
    Ok(())
}
