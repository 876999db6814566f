//! From a folder of photos to the network on the door.
//!
//! Four ways, in the order in which a sane person tries them: use a network as it is, retrain it,
//! change its structure, build one. See docs/training-guide.md and docs/training.md.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};

use pawlatch_trainer::data::augment::Augmentation;
use pawlatch_trainer::data::{Dataset, Scene, Split, browse, open, teach};
use pawlatch_trainer::evaluate::Setting;
use pawlatch_trainer::files::{Work, write_whole};
use pawlatch_trainer::head::Base;
use pawlatch_trainer::localize::{self, Finder, Method};
use pawlatch_trainer::net::Net;
use pawlatch_trainer::net::onnx::Precision;
use pawlatch_trainer::net::zoo::Architecture;
use pawlatch_trainer::plan::{self, Axis, Plan, Tried};
use pawlatch_trainer::retrain::{self, default_work_dir};
use pawlatch_trainer::train::Epoch;
use pawlatch_trainer::weights::StateDict;
use pawlatch_trainer::{bundle, detector, engine, evaluate, export, report, show};

use pawlatch_core::sight::Class;
use pawlatch_core::vision::Task;

/// Tensors are aligned, and glibc before 2.38 often does not reuse aligned memory that was given
/// back (sourceware bug 14581): three detectors as teachers took 14 GB after some 1,500 pictures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains, edits and measures the networks of a Pawlatch door.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build, show and edit networks.
    #[command(subcommand)]
    Net(NetCommand),
    /// Check, split and look at labelled pictures.
    #[command(subcommand)]
    Dataset(DatasetCommand),
    /// Retrain a network for the classes of a dataset and write a model for the door.
    Retrain(RetrainArgs),
    /// Train a detector on the values of a classifier and write a model for the door.
    Detector {
        #[command(flatten)]
        args: RetrainArgs,
        /// Train no further: write the best of the epochs so far.
        #[arg(long)]
        finish: bool,
    },
    /// Measure a model on a dataset, exactly as the door runs it.
    Evaluate(EvaluateArgs),
    /// Compare ways to say where the animal is, on pictures of one dog or cat; or draw what the
    /// network sees where.
    Localize(LocalizeArgs),
    /// Measure a model, choose its threshold, write its card and report, and pack it into the one
    /// file that a door takes.
    Export(ExportArgs),
    /// Print the learning rate of each step of a plan.
    Rates {
        /// A training plan.
        plan: PathBuf,
        /// Steps of each stage.
        #[arg(long, default_value_t = 20)]
        steps: usize,
    },
}

#[derive(Subcommand)]
enum NetCommand {
    /// Turn published PyTorch weights (.pth, .safetensors) into ONNX.
    Import {
        /// What the weights are of.
        architecture: Architecture,
        /// The state dict.
        weights: PathBuf,
        /// The ONNX to write.
        out: PathBuf,
    },
    /// Make a network with fresh weights.
    New {
        /// What to build.
        architecture: Architecture,
        /// The ONNX to write.
        out: PathBuf,
        /// Number of classes.
        #[arg(long, default_value_t = 5)]
        classes: usize,
        /// Multiplies hidden units (AlexNet) or channels (small networks).
        #[arg(long, default_value_t = 1.0)]
        width: f32,
        /// Side of the square input, pixels; the published one if absent.
        #[arg(long)]
        side: Option<usize>,
        /// Seed of the weights.
        #[arg(long, default_value_t = 7)]
        seed: u64,
    },
    /// List layers, shapes, parameters and multiply-adds.
    Show {
        /// An ONNX.
        net: PathBuf,
        /// Side of the input where the network leaves it open, pixels.
        #[arg(long, default_value_t = 224)]
        side: usize,
        /// Also draw it into this SVG file.
        #[arg(long)]
        svg: Option<PathBuf>,
    },
    /// Replace the last dense layer by a fresh one.
    SwapHead {
        /// An ONNX.
        net: PathBuf,
        /// The ONNX to write.
        out: PathBuf,
        /// Number of classes.
        #[arg(long)]
        classes: usize,
        /// Seed of the weights.
        #[arg(long, default_value_t = 7)]
        seed: u64,
    },
    /// Turn dense layers into convolutions, prove that the answer is the same, and write the net
    /// that runs at any size.
    Fc2conv {
        /// An ONNX.
        net: PathBuf,
        /// The ONNX to write.
        out: PathBuf,
        /// Side of the classifier's own input, pixels.
        #[arg(long, default_value_t = 224)]
        side: usize,
    },
    /// Compare a network, as the trainer runs it, with the file it comes from, as plain tract runs
    /// that: an error if any answer differs by more than 1e-4 of the largest.
    Verify {
        /// An ONNX that was imported.
        net: PathBuf,
        /// The same network as ONNX from where the weights come from; its outputs come first in
        /// `net`.
        source: PathBuf,
        /// The picture both look at.
        picture: PathBuf,
        /// Side of the input where the network leaves it open, pixels.
        #[arg(long, default_value_t = 224)]
        side: usize,
    },
}

#[derive(Subcommand)]
enum DatasetCommand {
    /// Check every picture, drop damaged and duplicate ones, split, and write a dataset file.
    Build {
        /// A folder with a sub-folder per label, or a TOML description.
        source: PathBuf,
        /// The dataset file (JSON) to write.
        out: PathBuf,
    },
    /// Let detectors that already know complete the boxes of the training pictures.
    Teach {
        /// A dataset file, folder or description.
        data: PathBuf,
        /// The dataset file (JSON) to write.
        out: PathBuf,
        /// A model directory of a detector; give several.
        #[arg(long, required = true)]
        teacher: Vec<PathBuf>,
        /// A source whose boxes stay as they are; may be given several times.
        #[arg(long)]
        except: Vec<String>,
    },
    /// Write a page with contact sheets, counts and boxes.
    Browse {
        /// A dataset file, folder or description.
        data: PathBuf,
        /// The HTML to write.
        out: PathBuf,
        /// Most pictures of each class and split.
        #[arg(long, default_value_t = 60)]
        most: usize,
        /// Also show four distorted variants of each, as training sees them.
        #[arg(long)]
        augmented: bool,
    },
}

#[derive(Args)]
struct RetrainArgs {
    /// The network to start from: an ONNX, or a model directory of the door. `features` must be its
    /// embedding unless a plan says otherwise.
    #[arg(long)]
    base: PathBuf,
    /// A dataset file, folder or description.
    #[arg(long)]
    data: PathBuf,
    /// Stages and recipes (TOML); without one only the head is trained.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The model directory to write.
    #[arg(long)]
    out: PathBuf,
    /// Values of one of the plan's keys to try, as `stage.1.recipe.rate=1e-3,3e-3`; several make
    /// every combination. A ranked table is printed, and the best is written.
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    sweep: Vec<Axis>,
    /// Where caches and checkpoints are kept.
    #[arg(long)]
    work_dir: Option<PathBuf>,
    /// cpu, vulkan, wgpu or cuda, or one of several as cuda:1. A list, cuda:0,cuda:1, shares the
    /// pictures of each step.
    #[arg(long, value_delimiter = ',', default_value = "cpu")]
    device: Vec<String>,
    /// Name in the manifest; the directory's if absent.
    #[arg(long)]
    name: Option<String>,
    /// Version in the manifest.
    #[arg(long, default_value = "1")]
    model_version: String,
    /// Licence of the weights.
    #[arg(long, default_value = "LicenseRef-unknown")]
    licence: String,
    /// Where the weights come from.
    #[arg(long, default_value = "retrained by the owner")]
    source: String,
    /// Commit of the program, written into the manifest.
    #[arg(long)]
    commit: Option<String>,
}

impl RetrainArgs {
    fn devices(&self) -> Result<Vec<burn::tensor::Device>> {
        self.device.iter().map(|name| engine::device(name)).collect()
    }

    fn work_dir(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| default_work_dir(&self.out))
    }

    /// Trains by `plan`, or by every plan of the sweep and returns the best.
    fn each<P: Plan + Clone, T>(
        &self,
        plan: P,
        run: impl Fn(&P, &Work) -> Result<Tried<T>>,
    ) -> Result<(P, T)> {
        let (work_dir, work) = (self.work_dir(), Work::at(&self.work_dir()));
        if self.sweep.is_empty() {
            let tried = run(&plan, &work)?;
            return Ok((plan, tried.result));
        }
        let points = plan::grid(&plan, &self.sweep)?;
        let (ranked, plan, best) =
            plan::sweep(points, |name, plan| run(plan, &work.of_point(name)))?;
        print!("\n{}", plan::table(&ranked));
        write_whole(&work_dir.join("sweep.json"), &serde_json::to_vec_pretty(&ranked)?)?;
        Ok((plan, best))
    }

    fn finished(&self, history: &[Vec<Epoch>]) -> Result<()> {
        let page = report::history(history);
        write_whole(&self.work_dir().join("history.html"), page.as_bytes())?;
        println!("wrote {}", self.out.display());
        Ok(())
    }

    fn card(&self) -> export::Card<'_> {
        let directory =
            self.out.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        export::Card {
            name: self.name.clone().unwrap_or(directory),
            version: &self.model_version,
            licence: &self.licence,
            source: &self.source,
            commit: self.commit.clone(),
        }
    }
}

#[derive(Args)]
struct EvaluateArgs {
    /// A model directory.
    model: PathBuf,
    /// A dataset file, folder or description.
    #[arg(long)]
    data: PathBuf,
    /// Measure on the training pictures instead: only to see over-fitting.
    #[arg(long)]
    on_training: bool,
    /// Only pictures of this source (detectors).
    #[arg(long)]
    source: Option<String>,
    /// Also measure under grey, dark, blur, JPEG, half-hidden and small.
    #[arg(long)]
    corruptions: bool,
    /// A model directory of a detector: whole pictures are answered as `pawlatch classify` does with
    /// it, by the picture and the surest box, each also mirrored (classifiers).
    #[arg(long, conflicts_with = "record")]
    detector: Option<PathBuf>,
    /// Write the figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a page: curves, mistakes with heat, the surest of each class, filters, layers.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Write the figures into the model's manifest.
    #[arg(long)]
    record: bool,
}

#[derive(Args)]
struct LocalizeArgs {
    /// A model directory of a classifier.
    model: PathBuf,
    /// How; all that the models allow if absent. May be given several times.
    #[arg(long)]
    method: Vec<Method>,
    /// A model directory of a detector.
    #[arg(long)]
    detector: Option<PathBuf>,
    /// A dataset file or description with boxes.
    #[arg(long, required_unless_present = "picture")]
    data: Option<PathBuf>,
    /// Write the table as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the heat of one picture instead, by the first method.
    #[arg(long, requires = "heat")]
    picture: Option<PathBuf>,
    /// The PNG to draw it into.
    #[arg(long, requires = "picture")]
    heat: Option<PathBuf>,
    /// Draw the heat alone, from where it is least to where it is most: of a photo that you may not
    /// show.
    #[arg(long, requires = "heat")]
    bare: bool,
    /// Whose heat.
    #[arg(long, default_value = "dog")]
    class: String,
}

#[derive(Args)]
struct ExportArgs {
    /// A model directory, as `retrain` and `detector` write it.
    model: PathBuf,
    /// The bundle to write, NAME-VERSION.tar.gz.
    #[arg(short, long)]
    out: PathBuf,
    /// A dataset to measure it on; without one the model is packed as it is, say after signing.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Most of all that is no dog to let in at the threshold that is written down, as a share.
    #[arg(long, default_value_t = 0.005)]
    far: f64,
    /// A classifier that it must not do worse than on the same pictures.
    #[arg(long, requires = "data")]
    gate: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Net(command) => net(command),
        Command::Dataset(command) => dataset(command),
        Command::Retrain(args) => run_retrain(&args),
        Command::Detector { args, finish } => run_detector(&args, finish),
        Command::Evaluate(args) => run_evaluate(&args),
        Command::Localize(args) => run_localize(&args),
        Command::Export(args) => run_export(&args),
        Command::Rates { plan, steps } => {
            for (n, recipe) in plan::recipes(&plan)?.iter().enumerate() {
                recipe.check()?;
                println!("stage {}: {}", n + 1, recipe.preview());
                for step in 0..steps {
                    let rate = recipe.rate_at(step, steps);
                    let bar = "#".repeat((rate / recipe.rate * 50.0) as usize);
                    println!("{step:>6}  {rate:<12.3e} {bar}");
                }
            }
            Ok(())
        }
    }
}

fn net(command: NetCommand) -> Result<()> {
    match command {
        NetCommand::Import { architecture, weights, out } => {
            write_net(&architecture.filled(&StateDict::load(&weights)?)?, &out)
        }
        NetCommand::New { architecture, out, classes, width, side, seed } => {
            let side = side.unwrap_or(architecture.side());
            write_net(&architecture.fresh_at(side, classes, width, seed)?, &out)
        }
        NetCommand::Show { net, side, svg } => {
            let net = Net::load(&net)?;
            print!("{}", show::text(&net, side)?);
            svg.map_or(Ok(()), |path| write_whole(&path, show::svg(&net, side)?.as_bytes()))
        }
        NetCommand::SwapHead { net, out, classes, seed } => {
            write_net(&Net::load(&net)?.swap_head(classes, seed)?, &out)
        }
        NetCommand::Fc2conv { net, out, side } => {
            let (map, gap) = export::fully_convolutional(&Net::load(&net)?, side)?;
            println!("the mean of the map differs from the classifier by {gap:.1e}");
            write_net(&map, &out)
        }
        NetCommand::Verify { net, source, picture, side } => {
            let (net, picture) = (Net::load(&net)?, pawlatch_trainer::data::open(&picture)?);
            let gaps = export::against_source(&net, &source, side, &picture)?;
            for (gap, output) in gaps.iter().zip(&net.outputs) {
                println!("{output}: differs by {gap:.1e}");
            }
            let same = gaps.iter().all(|gap| *gap <= 1e-4);
            ensure!(same, "{} is another network", source.display());
            Ok(())
        }
    }
}

fn write_net(net: &Net, out: &Path) -> Result<()> {
    write_whole(out, &net.encode(Precision::Single)?)?;
    println!("wrote {} ({:.2} million parameters)", out.display(), net.param_count() as f64 / 1e6);
    Ok(())
}

fn dataset(command: DatasetCommand) -> Result<()> {
    match command {
        DatasetCommand::Build { source, out } => {
            let data = Dataset::load(&source)?;
            for note in &data.notes {
                println!("{note}");
            }
            let (train, validate) = (data.counts(Split::Train), data.counts(Split::Validate));
            for (i, class) in data.classes.iter().enumerate() {
                println!("{class:<12} {:>6} to train on, {:>6} to validate", train[i], validate[i]);
            }
            println!("{} pictures with boxes\nsha256 {}", data.scenes.len(), data.sha256);
            write_whole(&out, &serde_json::to_vec(&data)?)
        }
        DatasetCommand::Teach { data, out, teacher, except } => {
            let mut data = Dataset::load(&data)?;
            teach::teach(&mut data, &teacher, &except)?;
            for class in Class::ALL {
                let of = |s: &Scene| s.boxes.iter().filter(|b| b.label == class.name()).count();
                let train = data.scenes.iter().filter(|s| s.split == Split::Train);
                println!(
                    "{:<12} {:>6} boxes to train on",
                    class.name(),
                    train.map(of).sum::<usize>()
                );
            }
            println!("{}\nsha256 {}", data.notes.last().map_or("", String::as_str), data.sha256);
            write_whole(&out, &serde_json::to_vec(&data)?)
        }
        DatasetCommand::Browse { data, out, most, augmented } => {
            let augmentation = Augmentation::default();
            let data = Dataset::load(&data)?;
            let page = browse::page(&data, most, augmented.then_some((&augmentation, 7)))?;
            write_whole(&out, page.as_bytes())
        }
    }
}

fn run_retrain(args: &RetrainArgs) -> Result<()> {
    let devices = args.devices()?;
    let data = Dataset::load(&args.data)?;
    let base = Base::load(&args.base)?;
    let plan = match &args.plan {
        Some(path) => retrain::Plan::load(path)?,
        None => retrain::Plan::head_only(base.net.shape_at(224)[2], [127.0; 3], [128.0; 3], 7),
    };
    let (plan, trained) = args.each(plan, |plan, work| {
        let trained = retrain::retrain(&base, &data, plan, work, &devices)?;
        let (validation, history) = (trained.validation, trained.history.clone());
        Ok(Tried { result: trained, validation, history })
    })?;
    println!(
        "temperature {:.3}; calibration error {:.4} before, {:.4} after",
        trained.temperature, trained.ece.0, trained.ece.1
    );
    export::classifier(&args.out, &trained, &data, &plan, &args.card(), &devices[0])?;
    let figures = evaluate::evaluate(&args.out, &data, Setting::default())?;
    write_report(&args.out, &report::page(&figures, &args.out)?)?;
    args.finished(&trained.history)
}

fn write_report(model: &Path, page: &str) -> Result<()> {
    write_whole(&model.join("report.html"), page.as_bytes())
}

fn run_detector(args: &RetrainArgs, finish: bool) -> Result<()> {
    use detector::train;

    let devices = args.devices()?;
    let data = Dataset::load(&args.data)?;
    let path = args.plan.as_deref().context("a detector needs a --plan")?;
    let base = Net::load(&args.base)?;
    let (plan, (net, history)) = args.each(train::Plan::load(path)?, |plan, work| {
        let (net, history) = train::train(&base, &data, plan, work, &devices, finish)?;
        let validation = train::best(&history);
        Ok(Tried { result: (net, history.clone()), validation, history })
    })?;
    train::export(&args.out, &net, &data, &plan, &history, &args.card(), &devices[0])?;
    let model = evaluate::load_model(&args.out)?;
    let figures = detector::score::score(model, &data, Split::Validate, None)?;
    write_report(&args.out, &report::detector_page(&figures)?)?;
    args.finished(&history)
}

fn run_evaluate(args: &EvaluateArgs) -> Result<()> {
    let split = if args.on_training { Split::Train } else { Split::Validate };
    let data = Dataset::load(&args.data)?;
    let model = evaluate::load_model(&args.model)?;
    let write = |path: &Option<PathBuf>, bytes: &dyn Fn() -> Result<Vec<u8>>| {
        path.as_ref().map_or(Ok(()), |path| write_whole(path, &bytes()?))
    };
    if model.manifest.task == Task::Detector {
        ensure!(
            args.detector.is_none() && !args.corruptions,
            "`--detector` and `--corruptions` are about classifiers; {} is a detector",
            args.model.display()
        );
        let figures = detector::score::score(model, &data, split, args.source.as_deref())?;
        print!("{}", figures.text());
        write(&args.json, &|| Ok(serde_json::to_vec_pretty(&figures)?))?;
        write(&args.html, &|| Ok(report::detector_page(&figures)?.into_bytes()))?;
        if args.record {
            detector::train::record(&args.model, &figures)?;
        }
        return Ok(());
    }
    ensure!(
        args.source.is_none(),
        "`--source` is about detectors: a classifier's figures name every source"
    );
    let (corruptions, detector) = (args.corruptions, args.detector.as_deref());
    let setting = Setting { split, corruptions, detector };
    let figures = evaluate::evaluate(&args.model, &data, setting)?;
    print!("{}", figures.text());
    write(&args.json, &|| Ok(serde_json::to_vec_pretty(&figures)?))?;
    write(&args.html, &|| Ok(report::page(&figures, &args.model)?.into_bytes()))?;
    if args.record {
        export::record(&args.model, &figures)?;
    }
    Ok(())
}

fn run_localize(args: &LocalizeArgs) -> Result<()> {
    let finder = |method: Method| {
        let dir = match method {
            Method::Detector => args.detector.as_deref().context("give a --detector")?,
            Method::Sliding | Method::Fcn => &args.model,
        };
        let model = evaluate::load_model(dir)?;
        let onnx = dir.join(&model.manifest.file);
        Finder::new(method, model, || Net::load(&onnx))
            .with_context(|| format!("{} by {method:?}", dir.display()))
    };
    let mut methods = args.method.clone();
    if methods.is_empty() {
        methods = vec![Method::Fcn, Method::Sliding];
        methods.extend(args.detector.iter().map(|_| Method::Detector));
    }
    if let (Some(picture), Some(out)) = (&args.picture, &args.heat) {
        let class = evaluate::door_class(&args.class)?;
        let picture = open(picture)?;
        let mut heat = finder(methods[0])?.heat(&picture)?.context("a detector has no heat map")?;
        let (low, high) = heat.range(class);
        println!(
            "{class}: {:.1} % where it is least likely, {:.1} % at most",
            low * 100.0,
            high * 100.0
        );
        let mut png = std::io::Cursor::new(Vec::new());
        let (w, h) = picture.dimensions();
        let behind = if args.bare {
            heat.spread(class);
            image::RgbImage::from_pixel(w, h, image::Rgb([225; 3]))
        } else {
            picture
        };
        heat.over(&behind, class).write_to(&mut png, image::ImageFormat::Png)?;
        return write_whole(out, &png.into_inner());
    }
    let data = Dataset::load(args.data.as_deref().context("give --data or --picture")?)?;
    let mut finders = vec![("middle 80 %".to_owned(), Finder::middle())];
    for method in methods {
        finders.push((format!("{method:?}").to_lowercase(), finder(method)?));
    }
    let rows = localize::compare(&mut finders, &data, Split::Validate)?;
    print!("{}", localize::table(&rows));
    args.json.as_ref().map_or(Ok(()), |p| write_whole(p, &serde_json::to_vec_pretty(&rows)?))
}

fn run_export(args: &ExportArgs) -> Result<()> {
    if let Some(data) = &args.data {
        measure(args, &Dataset::load(data)?)?;
    }
    let packed = bundle::pack(&args.model, &args.out)?;
    println!("{} {}", packed.sha256, args.out.display());
    if !packed.signed {
        println!(
            "not signed: sign {} with minisign and export again without --data, or tell the door \
             the SHA-256",
            args.model.join("bundle.toml").display()
        );
    }
    Ok(())
}

/// Figures, threshold, report and card of a model that is about to leave.
fn measure(args: &ExportArgs, data: &Dataset) -> Result<()> {
    let model = evaluate::load_model(&args.model)?;
    if model.manifest.task == Task::Detector {
        let figures = detector::score::score(model, data, Split::Validate, None)?;
        detector::train::record(&args.model, &figures)?;
        write_report(&args.model, &report::detector_page(&figures)?)?;
        return export::card(&args.model, &figures.text());
    }
    let figures = evaluate::evaluate(&args.model, data, Setting::default())?;
    if let Some(gate) = &args.gate {
        let other = evaluate::evaluate(gate, data, Setting::default())?;
        if let Some(how) = figures.worse_than(&other, args.far) {
            anyhow::bail!(
                "{} does worse than {}: {how}; nothing written",
                figures.model,
                other.model
            );
        }
    }
    export::record(&args.model, &figures)?;
    let chosen = export::record_operating(&args.model, &figures, args.far)?;
    println!(
        "at p(dog) > {:.3}: lets in {} of all that is no dog, keeps out {} of dogs",
        chosen.threshold,
        chosen.far_non_dog(),
        chosen.frr
    );
    write_report(&args.model, &report::page(&figures, &args.model)?)?;
    export::card(&args.model, &figures.text())
}
