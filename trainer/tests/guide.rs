//! Every command and every file of docs/training-guide.md, copied from the page and run in its
//! order on a few drawn pictures; epochs are cut to one.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

mod drawn;

use std::path::Path;

/// The picture whose heat is drawn.
const DOG: &str = "data/detect/images/hlb_n02100877_738.jpg";

/// The fenced blocks of `language`, in order.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).filter_map(|b| b.split("```").next()).collect()
}

/// The files of the page: the first line of each names it.
fn files(page: &str) -> Vec<(&str, &str)> {
    let files = blocks(page, "toml").into_iter();
    files.map(|f| (f.lines().next().and_then(|l| l.strip_prefix("# ")).unwrap(), f)).collect()
}

/// A plan as the page has it, but for how long it takes.
fn hurried(plan: &str) -> String {
    let line = |l: &str| match l.split_once(" = ") {
        Some((key @ ("epochs" | "variants"), _)) => format!("{key} = 1"),
        _ => l.to_owned(),
    };
    plan.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The commands of the page, in their order.
fn commands(page: &str) -> Vec<String> {
    blocks(page, "sh")
        .into_iter()
        .flat_map(|b| b.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|l| l.starts_with("pawlatch-trainer "))
        .collect()
}

#[test]
fn the_page_can_be_followed_from_photos_to_bundle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/training-guide.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    drawn::photos(&dir.join("photos"), &["cat", "dog", "person", "other", "nothing"], 14);
    drawn::boxed(&dir.join("boxes"), 20);
    let dog = drawn::picture(1, 3, [30, 30, 80, 80]);
    dog.save(dir.join("dog.png")).unwrap();
    std::os::unix::fs::symlink(root.join("models"), dir.join("models")).unwrap();
    for (name, file) in files(&page) {
        std::fs::write(dir.join(name), hurried(file)).unwrap();
    }
    let commands = commands(&page);
    assert!(commands.len() >= 12, "{commands:#?}");
    for command in &commands {
        let said = drawn::run(dir, command.trim_start_matches("pawlatch-trainer "));
        println!("{command}\n{said}");
        // The bare network may tell drawn rings better than one trained on a handful of them.
        if command.contains(" localize ") && command.contains("--data") {
            assert!(said.contains("mean IoU"), "{said}");
        }
    }
    for written in ["report.html", "heat.png", "map.onnx", "finder/model.toml", "mine-1.0.0.tar.gz"]
    {
        assert!(dir.join(written).exists(), "{written}");
    }
}

/// The same with the pictures the shipped classifier was trained on, as long as the page says:
/// what came out is kept beside the page, which quotes it.
#[test]
#[ignore = "takes half an hour and writes docs/training-guide.txt and the pictures of heat"]
fn the_figures_of_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let page = std::fs::read_to_string(root.join("docs/training-guide.md")).unwrap();
    // Where it was stopped it goes on: trainings have their checkpoints there.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide");
    std::fs::create_dir_all(&dir).unwrap();
    if !dir.join("models").exists() {
        std::os::unix::fs::symlink(root.join("models"), dir.join("models")).unwrap();
    }
    for (name, file) in files(&page) {
        std::fs::write(dir.join(name), file).unwrap();
    }
    let data = std::fs::read_to_string(root.join("models/pet_classifier/data.toml")).unwrap();
    let shared = root.join("../shared");
    let data = data.replace("../../../shared", shared.to_str().unwrap());
    std::fs::write(dir.join("data.toml"), data).unwrap();
    image::open(shared.join(DOG)).unwrap().save(dir.join("dog.png")).unwrap();
    let mut said = format!(
        "What the commands of training-guide.md print with the pictures of models/pet_classifier/data.toml\n\
         and {DOG} as dog.png. Made by\n\
         cargo test --release --manifest-path trainer/Cargo.toml --test guide -- --ignored\n"
    );
    for command in commands(&page) {
        let began = std::time::Instant::now();
        // The photo may not be shown.
        let bare = if command.contains("--heat") { " --bare" } else { "" };
        let command = command + bare;
        let out = drawn::run(&dir, command.trim_start_matches("pawlatch-trainer "));
        let seconds = began.elapsed().as_secs();
        said += &format!(
            "\n$ {}\n{out}({seconds} s)\n",
            command.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        let said = said.replace(shared.to_str().unwrap(), "../shared");
        std::fs::write(root.join("docs/training-guide.txt"), said).unwrap();
    }
    for (heat, picture) in [("heat", "training-guide"), ("heat-mine", "training-guide-mine")] {
        let to = root.join(format!("docs/{picture}.png"));
        std::fs::copy(dir.join(format!("{heat}.png")), to).unwrap();
    }
}
