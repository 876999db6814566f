//! The program as a person runs it: every command of docs/training.md, on a few drawn pictures, and what goes
//! wrong on the way.

#![allow(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

mod drawn;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use drawn::{complaint, photos, refused, run, trainer};

const PLAN: &str = "side = 32\nmean = [127.0, 127.0, 127.0]\nstd = [64.0, 64.0, 64.0]\n\
    fraction = 1.0\nseed = 3\n[[stage]]\ncut = 'image'\nvariants = 2\n[stage.recipe]\n\
    epochs = 6\nbatch = 8\nrate = 3e-3\nema = 0.9\npatience = 0\n";

/// Photos, a dataset, a network and a plan.
fn prepared() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_path_buf();
    photos(&path.join("photos"), &["cat", "dog", "nothing"], 30);
    std::fs::write(path.join("plan.toml"), PLAN).unwrap();
    run(&path, "dataset build photos data.json");
    run(&path, "net new small-depthwise small.onnx --classes 3 --width 0.5 --side 32");
    (dir, path)
}

/// What a command wrote as JSON.
fn json(dir: &Path, name: &str) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join(name)).unwrap()).unwrap()
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
    assert_eq!(run(&dir, "rates plan.toml").lines().count(), 21);
    run(
        &dir,
        "retrain --base small.onnx --data data.json --plan plan.toml --out mine --work-dir w",
    );
    let text = run(
        &dir,
        "evaluate mine --data data.json --corruptions --html report.html --json report.json --record",
    );
    assert!(text.contains("HalfHidden"), "{text}");
    // Several views of a whole picture instead of one view of each box.
    drawn::boxed(&dir.join("boxes"), 24);
    std::fs::write(
        dir.join("boxes.toml"),
        "classes = ['cat', 'dog']\n[[boxes]]\npath = 'boxes/annotations.json'\n\
         pictures = 'boxes/images'\nvalidate_share = 0.5\ncrops = true\nwhole = true\n",
    )
    .unwrap();
    run(&dir, "dataset build boxes.toml boxes.json");
    run(&dir, "evaluate mine --data boxes.json --json alone.json");
    let detector = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/pet_detector");
    let together = format!("evaluate mine --data boxes.json --detector {detector}");
    let text = run(&dir, &format!("{together} --corruptions --json together.json"));
    assert!(text.contains("HalfHidden") && text.contains("log loss"), "{text}");
    let (alone, several) = (json(&dir, "alone.json"), json(&dir, "together.json"));
    assert!(!alone["crops"].is_null() && several["crops"].is_null());
    assert_eq!(several["all"]["pictures"], alone["whole"]["pictures"]);
    assert_ne!(several["all"]["log_loss3"], alone["whole"]["log_loss3"]);
    assert!(several["uncalibrated"].is_null() && !alone["uncalibrated"].is_null());
    for (line, why) in [
        (&format!("{together} --record"), "--record"),
        (&format!("evaluate {detector} --data data.json --corruptions"), "is a detector"),
        (&"evaluate mine --data data.json --source photos".to_owned(), "name every source"),
    ] {
        let said = refused(&dir, line);
        assert!(said.contains(why), "{line}: {said}");
    }
    let page = std::fs::read_to_string(dir.join("report.html")).unwrap();
    for part in [
        "precision<td>",
        "Error rates by threshold",
        "DET",
        "Precision against recall",
        "uncalibrated, ECE",
        "Most confident mistakes",
        "Surest of each class",
        "First filters",
        "Layers",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let report = json(&dir, "report.json");
    let kept_out = |o: &serde_json::Value| o["frr"]["hits"].as_u64().unwrap();
    let curve = report["curve"].as_array().unwrap();
    assert!(curve.len() > 40 && curve.windows(2).all(|w| kept_out(&w[0]) <= kept_out(&w[1])));
    assert!(dir.join("mine/report.html").exists(), "a training writes its report");
    // What is said to be uncalibrated is what the model says without its calibration.
    let mut manifest: toml::Table =
        std::fs::read_to_string(dir.join("mine/model.toml")).unwrap().parse().unwrap();
    assert!(manifest.remove("calibration").is_some());
    std::fs::create_dir(dir.join("bare")).unwrap();
    std::fs::copy(dir.join("mine/model.onnx"), dir.join("bare/model.onnx")).unwrap();
    std::fs::write(dir.join("bare/model.toml"), manifest.to_string()).unwrap();
    run(&dir, "evaluate bare --data data.json --json bare.json");
    let bare = json(&dir, "bare.json");
    assert!(bare["uncalibrated"].is_null());
    let ece = |v: &serde_json::Value| v.as_f64().unwrap();
    assert!((ece(&bare["all"]["ece"]) - ece(&report["uncalibrated"][0])).abs() < 1e-5);
    assert!((ece(&bare["all"]["ece"]) - ece(&report["all"]["ece"])).abs() > 1e-4);
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

const RETRAIN: &str = "retrain --base small.onnx --data data.json --plan plan.toml";

#[test]
fn a_sweep_ranks_what_it_tried_writes_the_best_and_survives_what_fails() {
    let (_keep, dir) = prepared();
    let line = format!(
        "{RETRAIN} --out best --work-dir w --sweep stage.1.recipe.rate=1e-6,3e-3,1e30 \
         --sweep stage.1.recipe.epochs=2"
    );
    let said = run(&dir, &line);
    let table: Vec<&str> = said.lines().skip_while(|l| !l.starts_with("rank")).collect();
    assert!(table[1].contains("rate=0.003") && table[1].starts_with("   1"), "{said}");
    assert!(table[2].contains("rate=0.000001") || table[2].contains("rate=1e-06"), "{said}");
    assert!(table[3].contains("NaN"), "{said}");
    let manifest = std::fs::read_to_string(dir.join("best/model.toml")).unwrap();
    assert!(manifest.contains("rate 0.003"), "{manifest}");
    // All three saw the same pictures: they were computed once.
    assert_eq!(std::fs::read_dir(dir.join("w/cache")).unwrap().count(), 2);
    assert!(dir.join("w/sweep.json").exists());
    let said = refused(&dir, &format!("{RETRAIN} --out x --sweep stage.1.recipe.speed=1"));
    assert!(said.contains("speed"), "{said}");
}

/// Names and bytes of a bundle's members, in order.
fn members(bundle: &Path) -> Vec<(String, Vec<u8>)> {
    use std::io::Read;
    let file = std::fs::File::open(bundle).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let member = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, bytes)
    };
    archive.entries().unwrap().map(member).collect()
}

#[test]
fn a_bundle_holds_what_its_manifest_says_and_a_door_takes_it() {
    let (_keep, dir) = prepared();
    run(&dir, &format!("{RETRAIN} --out mine --work-dir w --model-version 1.2"));
    let said = run(&dir, "export mine --data data.json --far 0.05 --out mine.tar.gz");
    assert!(said.contains("not signed") && said.contains("p(dog) >"), "{said}");
    let packed = members(&dir.join("mine.tar.gz"));
    let names: Vec<_> = packed.iter().map(|m| m.0.as_str()).collect();
    assert_eq!(names, ["bundle.toml", "model.toml", "model.onnx", "README.md", "report.html"]);
    let text = String::from_utf8(packed[0].1.clone()).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    assert_eq!(manifest["version"].as_str(), Some("1.2.0"));
    for (line, (name, bytes)) in manifest["files"].as_array().unwrap().iter().zip(&packed[1..]) {
        assert_eq!(line["name"].as_str(), Some(name.as_str()));
        assert_eq!(line["bytes"].as_integer(), Some(bytes.len() as i64));
        assert_eq!(line["sha256"].as_str().unwrap(), pawlatch_core::vision::sha256(bytes));
    }
    let written = std::fs::read_to_string(dir.join("mine/model.toml")).unwrap();
    assert!(written.contains("operating_far_nondog_upper95"), "{written}");
    // The same again, and then with a signature, which goes when the model changes.
    let first = std::fs::read(dir.join("mine.tar.gz")).unwrap();
    run(&dir, "export mine -o mine.tar.gz");
    assert!(first == std::fs::read(dir.join("mine.tar.gz")).unwrap());
    let signature = dir.join("mine/bundle.toml.minisig");
    std::fs::write(&signature, "stands for a signature").unwrap();
    assert!(!run(&dir, "export mine -o mine.tar.gz").contains("not signed"));
    assert_eq!(members(&dir.join("mine.tar.gz"))[1].0, "bundle.toml.minisig");
    std::fs::write(dir.join("mine/README.md"), "another card").unwrap();
    assert!(run(&dir, "export mine -o mine.tar.gz").contains("not signed"));
    assert!(!signature.exists());
    let itself = "export mine --data data.json --gate mine -o mine.tar.gz";
    run(&dir, itself);
    door_takes(&dir, "mine.tar.gz");
}

/// Adds a bundle with the door's own program, where `PAWLATCH` says which that is: the trainer's
/// workspace does not build it.
fn door_takes(dir: &Path, bundle: &str) {
    let Some(door) = std::env::var_os("PAWLATCH") else {
        eprintln!("skipped: PAWLATCH does not name the door's program");
        return;
    };
    let bytes = std::fs::read(dir.join(bundle)).unwrap();
    std::fs::create_dir_all(dir.join("door")).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    for entry in ["pet_classifier", "pet_detector", "active.toml"] {
        std::os::unix::fs::symlink(shipped.join(entry), dir.join("door").join(entry)).unwrap();
    }
    let sha256 = pawlatch_core::vision::sha256(&bytes);
    // Drawn rings teach nothing of dogs: the exam would rightly refuse it.
    let line = format!("model add {bundle} --models-dir door --sha256 {sha256} --without-exam");
    let out = Command::new(door).current_dir(dir).args(line.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(dir.join("door/mine@1.2.0/model.onnx").exists());
}

#[test]
fn a_model_that_does_worse_than_its_gate_is_not_exported() {
    let (_keep, dir) = prepared();
    run(&dir, &format!("{RETRAIN} --out good --work-dir w"));
    let hasty = std::fs::read_to_string(dir.join("plan.toml")).unwrap().replace("3e-3", "1e-9");
    std::fs::write(dir.join("plan.toml"), hasty).unwrap();
    run(&dir, &format!("{RETRAIN} --out bad --work-dir w2"));
    let said = refused(&dir, "export bad --data data.json --gate good -o bad.tar.gz");
    assert!(said.contains("does worse than good"), "{said}");
    assert!(!dir.join("bad.tar.gz").exists());
}

#[test]
fn a_full_disk_leaves_the_good_model_and_the_next_run_goes_on() {
    let (_keep, dir) = prepared();
    let line = format!("{RETRAIN} --out mine --work-dir w");
    run(&dir, &line);
    let good = |name: &str| std::fs::read(dir.join("mine").join(name)).unwrap();
    let (onnx, manifest) = (good("model.onnx"), good("model.toml"));
    let plan = std::fs::read_to_string(dir.join("plan.toml")).unwrap();
    std::fs::write(dir.join("plan.toml"), plan.replace("epochs = 6", "epochs = 2")).unwrap();
    // Files cannot grow beyond a few kilobytes, which fails as a full disk does: with the pictures
    // cached it is the checkpoint that does not fit, then the cache itself.
    for (gone, failed) in [("w/stage1", "cannot write"), ("w", "cannot fill")] {
        std::fs::remove_dir_all(dir.join(gone)).unwrap();
        let out = Command::new("sh")
            .current_dir(&dir)
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_pawlatch-trainer"))
            .args(line.split_whitespace())
            .output()
            .unwrap();
        let said = complaint(&line, &out);
        assert!(said.contains("File too large") && said.contains(failed), "{gone}: {said}");
        assert!(good("model.onnx") == onnx && good("model.toml") == manifest, "{gone}");
    }
    run(&dir, &line);
    assert!(good("model.onnx") != onnx);
}

#[test]
fn a_picture_that_is_damaged_after_the_check_and_an_empty_class_are_named() {
    let (_keep, dir) = prepared();
    std::fs::write(dir.join("photos/dog/7.png"), b"\x89PNG broken").unwrap();
    let said = refused(&dir, &format!("{RETRAIN} --out mine --work-dir w"));
    assert!(said.contains("dog/7.png"), "{said}");
    assert!(!dir.join("mine").exists());
    // A few damaged ones among many are left out, and said.
    let said = run(&dir, "dataset build photos again.json");
    assert!(said.contains("left out photos/dog/7.png"), "{said}");
    std::fs::create_dir(dir.join("photos/person")).unwrap();
    let said = refused(&dir, "dataset build photos empty.json");
    assert!(said.contains("class 'person' has 0"), "{said}");
    assert!(!dir.join("empty.json").exists());
}

#[test]
fn a_plan_of_another_side_than_the_networks_is_refused_before_anything_is_computed() {
    let (_keep, dir) = prepared();
    run(&dir, "net new small-depthwise large.onnx --classes 3 --width 0.5 --side 64");
    let line = "retrain --base large.onnx --data data.json --plan plan.toml --out x --work-dir w";
    let said = refused(&dir, line);
    assert!(said.contains("takes 64") && !dir.join("w").exists(), "{said}");
}

#[test]
fn teachers_leave_excepted_sources_and_validation_as_they_are() {
    let (_keep, dir) = prepared();
    drawn::boxed(&dir.join("boxes"), 12);
    std::fs::write(
        dir.join("boxed.toml"),
        "classes = ['cat', 'dog', 'nothing']\n[[folder]]\npath = 'photos'\n\
         [[boxes]]\npath = 'boxes/annotations.json'\npictures = 'boxes/images'\n\
         validate_share = 0.3\n",
    )
    .unwrap();
    run(&dir, "dataset build boxed.toml boxed.json");
    // Half of the boxed pictures are of another source.
    let mut data = json(&dir, "boxed.json");
    for scene in data["scenes"].as_array_mut().unwrap().iter_mut().step_by(2) {
        scene["source"] = "by hand".into();
    }
    std::fs::write(dir.join("boxed.json"), data.to_string()).unwrap();
    let teacher = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/pet_detector");
    let said = String::from_utf8(
        trainer(&dir, "dataset teach boxed.json taught.json --except")
            .args(["by hand", "--teacher"])
            .arg(teacher)
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    let taught = json(&dir, "taught.json");
    let scenes = |data: &serde_json::Value, of: &dyn Fn(&serde_json::Value) -> bool| {
        let scenes = data["scenes"].as_array().unwrap();
        scenes.iter().filter(|s| of(s)).cloned().collect::<Vec<_>>()
    };
    for keep in ["by hand", "validate"] {
        let own = |s: &serde_json::Value| s["source"] == keep || s["split"] == keep;
        assert!(!scenes(&data, &own).is_empty());
        assert_eq!(scenes(&data, &own), scenes(&taught, &own), "{said}");
    }
    let rest = |s: &serde_json::Value| s["source"] != "by hand" && s["split"] == "train";
    let complete = scenes(&taught, &rest);
    assert!(complete.iter().all(|s| s["exhaustive_for"].as_array().unwrap().len() == 4));
    assert!(complete.len() >= scenes(&data, &rest).len(), "{said}");
}
