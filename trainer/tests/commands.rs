//! The program as a person runs it: every command of docs/training.md, on a few drawn pictures.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

/// Drawn pictures, three classes in folders: rings, bars, and nothing but a shade.
fn photos(dir: &Path, per_class: u32) {
    for (class, name) in ["cat", "dog", "nothing"].into_iter().enumerate() {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        for i in 0..per_class {
            let seed = i.wrapping_mul(2_654_435_761) ^ (class as u32) << 7;
            let draw = |k: u32| seed.wrapping_mul(2 * k + 1).wrapping_mul(2_246_822_519) >> 24;
            let picture = RgbImage::from_fn(96, 96, |x, y| {
                let (dx, dy) = (x as f32 - draw(1) as f32 / 3.0, y as f32 - draw(2) as f32 / 3.0);
                let wave = match class {
                    0 => dx.hypot(dy),
                    1 => dx + dy * draw(3) as f32 / 255.0,
                    _ => 0.0,
                };
                let v = 120.0 + 80.0 * (wave / 5.0).sin();
                // A coarse pattern of its own, so that no two look like duplicates.
                let cell = (x / 12).wrapping_mul(73) ^ (y / 12).wrapping_mul(151) ^ seed;
                let shade = (cell.wrapping_mul(2_246_822_519) >> 27) as f32;
                Rgb([(v + shade) as u8, v as u8, (v - shade) as u8])
            });
            picture.save(dir.join(name).join(format!("{i}.png"))).unwrap();
        }
    }
}

fn trainer(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pawlatch-trainer"));
    command.current_dir(dir).args(line.split_whitespace());
    command
}

/// Runs a command line that must succeed; returns what it printed.
fn run(dir: &Path, line: &str) -> String {
    let out = trainer(dir, line).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

const PLAN: &str = "side = 32\nmean = [127.0, 127.0, 127.0]\nstd = [64.0, 64.0, 64.0]\n\
    fraction = 1.0\nseed = 3\n[[stage]]\ncut = 'image'\nvariants = 2\n[stage.recipe]\n\
    epochs = 6\nbatch = 8\nrate = 3e-3\nema = 0.9\npatience = 0\n";

/// Photos, a dataset, a network and a plan.
fn prepared() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    photos(&path.join("photos"), 30);
    std::fs::write(path.join("plan.toml"), PLAN).unwrap();
    run(&path, "dataset build photos data.json");
    run(&path, "net new small-depthwise small.onnx --classes 3 --width 0.5");
    (dir, path)
}

#[test]
fn the_commands_of_the_guide_work_together() {
    let (_keep, dir) = prepared();
    run(&dir, "dataset browse data.json data.html --augmented --most 4");
    let page = std::fs::read_to_string(dir.join("data.html")).unwrap();
    assert!(page.contains("nothing") && page.contains("data:image"));
    let shown = run(&dir, "net show small.onnx --side 32 --svg small.svg");
    assert!(shown.contains("stem"), "{shown}");
    assert!(std::fs::read_to_string(dir.join("small.svg")).unwrap().contains("<svg"));
    run(&dir, "net swap-head small.onnx five.onnx --classes 5");
    let proof = run(&dir, "net fc2conv five.onnx map.onnx --side 32");
    assert!(proof.contains("differs from the classifier by"), "{proof}");
    assert!(run(&dir, "rates plan.toml").lines().count() == 20);
    run(
        &dir,
        "retrain --base small.onnx --data data.json --plan plan.toml --out mine --work-dir w",
    );
    let text = run(
        &dir,
        "evaluate mine --data data.json --corruptions --html report.html --json report.json --record",
    );
    assert!(text.contains("HalfHidden"), "{text}");
    assert!(std::fs::read_to_string(dir.join("report.html")).unwrap().contains("Reliability"));
    let manifest = std::fs::read_to_string(dir.join("mine/model.toml")).unwrap();
    assert!(manifest.contains("accuracy_dog_cat_rest"), "{manifest}");
    // The model just made is where the next training starts.
    std::fs::write(
        dir.join("again.toml"),
        format!("{PLAN}decay_towards = 'start'\n[head]\nkeep = true\nadded = {{ cat = 2 }}\n"),
    )
    .unwrap();
    run(&dir, "retrain --base mine --data data.json --plan again.toml --out again --work-dir w2");
    run(&dir, "evaluate again --data data.json");
}

#[test]
fn a_training_killed_at_any_point_ends_with_the_same_bytes() {
    let (_keep, dir) = prepared();
    let line = |out: &str| {
        format!(
            "retrain --base small.onnx --data data.json --plan plan.toml --out {out} --work-dir work-{out}"
        )
    };
    run(&dir, &line("whole"));
    let whole = std::fs::read(dir.join("whole/model.onnx")).unwrap();
    let out = dir.join("pieces/model.onnx");
    let mut kills = 0;
    for patience_ms in [120, 350, 600, 900, 1300] {
        let mut child = trainer(&dir, &line("pieces"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(patience_ms) && !out.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        // Either nothing yet, or the whole file.
        assert!(!out.exists() || std::fs::read(&out).unwrap() == whole);
    }
    assert!(kills > 0, "the training was over before it could be killed");
    run(&dir, &line("pieces"));
    assert!(std::fs::read(&out).unwrap() == whole, "a killed run ended differently");
}
