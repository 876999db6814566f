//! Every command and every file of docs/training-guide.md, copied from the page and run in its
//! order on a few drawn pictures; epochs are cut to one.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

mod drawn;

use std::path::Path;

/// The fenced blocks of `language`, in order.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).filter_map(|b| b.split("```").next()).collect()
}

/// A plan as the page has it, but for how long it takes.
fn hurried(plan: &str) -> String {
    let line = |l: &str| match l.split_once(" = ") {
        Some((key @ ("epochs" | "variants"), _)) => format!("{key} = 1"),
        _ => l.to_owned(),
    };
    plan.lines().map(line).collect::<Vec<_>>().join("\n")
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
    for file in blocks(&page, "toml") {
        let name = file.lines().next().and_then(|l| l.strip_prefix("# ")).unwrap();
        std::fs::write(dir.join(name), hurried(file)).unwrap();
    }
    let commands: Vec<String> = blocks(&page, "sh")
        .into_iter()
        .flat_map(|b| b.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|l| l.starts_with("pawlatch-trainer "))
        .collect();
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
