//! Models that come as bundles: whatever happens on the way, the old ones stay in use, and the
//! next time it works.

#![expect(clippy::unwrap_used, reason = "a test may be blunt")]
#![expect(clippy::result_large_err, reason = "an error in a test is looked at, not passed on")]

mod bundles;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use bundles::{
    Answer, Signer, archive, as_child, child, die, manifest, model_bundle, serve, signed,
};
use pawlatch::bundle::Trust;
use pawlatch::models::{AddError, Added, FETCHABLE, ModelsDir, Permit, Step};
use tempfile::TempDir;

const QUICK: Permit = Permit { downgrade: false, unexamined: true };

/// A models directory with the shipped classifier, as a package leaves it.
fn shipped() -> (TempDir, ModelsDir) {
    let dir = TempDir::new().unwrap();
    let from = bundles::models_dir().join("efficientnet_lite0");
    let to = dir.path().join("efficientnet_lite0");
    fs::create_dir(&to).unwrap();
    for name in ["model.toml", "efficientnet_lite0.onnx"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let models = ModelsDir::open(dir.path(), "the test").unwrap();
    (dir, models)
}

fn as_is(text: String) -> String {
    text
}

fn bundle_file(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("bundle.tar.gz");
    bundles::write(&path, bytes);
    path.display().to_string()
}

fn add(models: &ModelsDir, from: &str, trust: &Trust, permit: Permit) -> Result<Added, AddError> {
    models.add(from, trust, permit, &mut |_| {})
}

/// Name of the classifier in use, which must be sound.
#[track_caller]
fn in_use(models: &ModelsDir) -> String {
    let in_use = models.in_use().expect("something is in use");
    in_use.vision().expect("what is in use can be used");
    in_use.required_classifier().unwrap().id()
}

#[test]
fn an_added_model_is_in_use_until_rolled_back_and_only_two_are_kept() {
    let (dir, models) = shipped();
    let signer = Signer::new(1);
    for version in ["1.1.0", "1.2.0", "1.3.0"] {
        let bytes = model_bundle(&signer, "yard", version, as_is);
        // By a file, and by address.
        let from = match version {
            "1.2.0" => serve(bytes, Answer::Whole),
            _ => bundle_file(dir.path(), &bytes),
        };
        let mut steps = Vec::new();
        let added =
            models.add(&from, &signer.trust(), QUICK, &mut |step| steps.push(step)).unwrap();
        assert_eq!(added.id, format!("yard@{version}"));
        assert_eq!(in_use(&models), added.id);
        assert_eq!((steps.len(), steps[0], steps[5]), (6, Step::Fetched, Step::InUse));
    }
    assert!(!dir.path().join("yard@1.1.0").exists(), "neither in use nor before it");
    models.roll_back().unwrap();
    assert_eq!(in_use(&models), "yard@1.2.0");
    models.roll_back().unwrap();
    assert_eq!(in_use(&models), "yard@1.3.0", "and forth");
    // The shipped one can be chosen as ever, and is what comes before the next.
    models.put_in_use("efficientnet_lite0", false, true).unwrap();
    models.roll_back().unwrap();
    assert_eq!(in_use(&models), "yard@1.3.0");
    assert!(!dir.path().join(".staging").exists());
}

#[test]
fn there_is_no_way_back_from_the_first() {
    let (_dir, models) = shipped();
    let error = models.roll_back().unwrap_err().to_string();
    assert!(error.contains("nothing was in use before"), "{error}");
}

#[test]
fn what_is_refused_leaves_the_old_in_use() {
    let (dir, models) = shipped();
    let signer = Signer::new(1);
    let trust = signer.trust();
    let good = model_bundle(&signer, "yard", "1.2.0", as_is);
    let refused = |from: &str, trust: &Trust, told: &str| {
        let error = add(&models, from, trust, QUICK).expect_err(told);
        let error = format!("{:#}", anyhow::Error::from(error));
        assert!(error.contains(told), "{error}");
        assert_eq!(in_use(&models), "efficientnet_lite0", "{told}");
        assert!(!dir.path().join(".staging").exists(), "{told}");
    };
    let by_file = |bytes: &[u8]| bundle_file(dir.path(), bytes);
    refused(&by_file(&good), &Signer::new(2).trust(), "not by any trusted key");
    refused(&by_file(&good[..good.len() / 2]), &trust, "cut short");
    refused(&by_file(b"not a bundle"), &trust, "damaged");
    refused("/nowhere/bundle.tar.gz", &trust, "/nowhere/bundle.tar.gz");
    refused(dir.path().to_str().unwrap(), &trust, "not a regular file");
    refused(&serve(good.clone(), Answer::BreaksOff(40)), &trust, "broke off");
    refused(&serve(good.clone(), Answer::NotFound), &trust, "404");
    refused("http://127.0.0.1:9/bundle", &trust, "cannot fetch");
    let pinned = Trust { pinned: Some("ab".repeat(32)), ..trust.clone() };
    refused(&by_file(&good), &pinned, "SHA-256");
    // Signed, but not a model that can be used.
    let bad = |edit: fn(String) -> String| model_bundle(&signer, "yard", "1.2.0", edit);
    refused(
        &by_file(&bad(|t| t.replacen("[1, 3, 224, 224]", "[1, 3, 256, 224]", 1))),
        &trust,
        "256",
    );
    refused(&by_file(&bad(|t| t.replacen("manifest = 1", "manifest = 7", 1))), &trust, "manifest");
    refused(&by_file(&bad(|t| t.replacen("\"1.2.0\"", "\"1.2.1\"", 1))), &trust, "the model in it");
    let mut program = manifest("pawlatch", "1.2.0", &[("pawlatch", b"x")]);
    program.kind = pawlatch::bundle::Kind::Program;
    program.arch = Some(std::env::consts::ARCH.to_owned());
    let program = archive(&signed(&signer, &program, &[("pawlatch", b"x")]));
    refused(&by_file(&program), &trust, "holds a program");
}

#[test]
fn an_older_or_a_changed_model_of_the_same_name_is_refused() {
    let (dir, models) = shipped();
    let signer = Signer::new(1);
    let add_version = |version: &str, permit, edit: fn(String) -> String| {
        let bytes = model_bundle(&signer, "yard", version, edit);
        add(&models, &bundle_file(dir.path(), &bytes), &signer.trust(), permit)
    };
    add_version("1.2.0", QUICK, as_is).unwrap();
    let error = add_version("1.1.9", QUICK, as_is).unwrap_err().to_string();
    assert!(error.contains("older than 1.2.0"), "{error}");
    let other = |t: String| t.replacen("fraction = 0.875", "fraction = 0.9", 1);
    let error = add_version("1.2.0", QUICK, other).unwrap_err().to_string();
    assert!(error.contains("needs a new version"), "{error}");
    assert_eq!(in_use(&models), "yard@1.2.0");
    add_version("1.2.0", QUICK, as_is).unwrap();
    add_version("1.1.9", Permit { downgrade: true, ..QUICK }, as_is).unwrap();
    assert_eq!(in_use(&models), "yard@1.1.9");
}

#[test]
fn what_does_worse_in_the_exam_is_refused_and_what_does_as_well_is_not() {
    let (dir, models) = shipped();
    let signer = Signer::new(1);
    // A network that takes cats for dogs: the same one, read the other way round.
    let swapped = |text: String| {
        text.replacen("classes.dog =", "classes.paw =", 1)
            .replacen("classes.cat =", "classes.dog =", 1)
            .replacen("classes.paw =", "classes.cat =", 1)
    };
    let bytes = model_bundle(&signer, "yard", "1.2.0", swapped);
    let from = bundle_file(dir.path(), &bytes);
    let error = add(&models, &from, &signer.trust(), Permit::default()).unwrap_err().to_string();
    assert!(error.contains("worse") && error.contains("missed"), "{error}");
    assert_eq!(in_use(&models), "efficientnet_lite0");
    // Nor is one that is there already chosen without being as good, unless that is meant.
    let worse = bundle_file(dir.path(), &model_bundle(&signer, "yard", "1.1.0", swapped));
    add(&models, &worse, &signer.trust(), QUICK).unwrap();
    models.roll_back().unwrap();
    let error = models.put_in_use("yard@1.1.0", false, false).unwrap_err();
    assert!(matches!(error, AddError::Worse { .. }), "{error}");
    assert_eq!(in_use(&models), "efficientnet_lite0");
    models.put_in_shadow(Some("yard@1.1.0")).unwrap();
    assert_eq!(models.shadow().unwrap().unwrap().id(), "yard@1.1.0");
    assert_eq!(in_use(&models), "efficientnet_lite0", "looking on it is not in use");
    assert!(models.put_in_shadow(Some("nobody")).is_err());
    models.put_in_use("yard@1.1.0", false, true).unwrap();
    assert!(models.shadow().unwrap().is_none(), "nor does it look on at itself");
    assert!(models.has_previous());
    models.roll_back().unwrap();
    assert_eq!(in_use(&models), "efficientnet_lite0");
    let bytes = model_bundle(&signer, "yard", "1.2.0", as_is);
    let from = bundle_file(dir.path(), &bytes);
    let added = add(&models, &from, &signer.trust(), Permit::default()).unwrap();
    let (new, old) = added.marks.unwrap();
    assert_eq!(new, old, "it is the same network");
    // The exam can be passed: most dogs are found, nobody else is let in.
    assert!(new.pictures == 45 && new.missed < 8 && new.let_in == 0, "{new:?}");
    assert_eq!(new.kept_out, 0, "{new:?}");
}

#[test]
fn somebody_elses_model_must_be_the_very_file_that_is_known() {
    let (_dir, models) = shipped();
    for model in &FETCHABLE {
        let url = serve(b"something else".to_vec(), Answer::Whole);
        let error = models.fetch(model, Some(&url), QUICK, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains("another file, or damaged"), "{error}");
    }
    assert_eq!(in_use(&models), "efficientnet_lite0");
}

#[test]
fn a_fetched_detector_is_used_beside_the_classifier() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    if !shared.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "../shared is absent");
        eprintln!("skipped: ../shared is absent");
        return;
    }
    let (_dir, models) = shipped();
    let onnx = fs::read(shared.join("models/yolox_nano/yolox_nano.onnx")).unwrap();
    let yolox = FETCHABLE.iter().find(|model| model.name == "yolox-nano").unwrap();
    let cut = serve(onnx.clone(), Answer::BreaksOff(70));
    let error = models.fetch(yolox, Some(&cut), QUICK, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("broke off"), "{error}");
    assert!(models.in_use().unwrap().detector.is_none());
    let url = serve(onnx, Answer::Whole);
    let added = models.fetch(yolox, Some(&url), Permit::default(), &mut |_| {}).unwrap();
    assert_eq!(added.id, "yolox_nano@1.0.0");
    assert_eq!(models.in_use().unwrap().to_string(), "yolox_nano+efficientnet_lite0");
    models.roll_back().unwrap();
    assert!(models.in_use().unwrap().detector.is_none());
}

/// Not a test by itself: adds a model, and dies after the step it is told.
#[test]
fn child_adds_a_model() {
    let Some((dir, what)) = as_child() else { return };
    let models = ModelsDir::open(&dir, "the test").unwrap();
    let from = dir.join("bundle.tar.gz").display().to_string();
    let added = models.add(&from, &Signer::new(1).trust(), QUICK, &mut |step| {
        if format!("{step:?}") == what {
            die();
        }
    });
    match added {
        Ok(added) => println!("added {}", added.id),
        Err(error) => println!("refused {:#}", anyhow::Error::from(error)),
    }
}

#[test]
fn a_power_cut_after_any_step_leaves_the_old_or_the_new_in_use() {
    let bytes = model_bundle(&Signer::new(1), "yard", "1.2.0", as_is);
    let steps =
        [Step::Fetched, Step::Unpacked, Step::Verified, Step::Examined, Step::Placed, Step::InUse];
    for step in steps {
        let (dir, models) = shipped();
        let from = bundle_file(dir.path(), &bytes);
        let mut child = child("child_adds_a_model", dir.path(), &format!("{step:?}"), None);
        assert!(!child.wait().unwrap().success(), "{step:?}: it died");
        let expected = if step == Step::InUse { "yard@1.2.0" } else { "efficientnet_lite0" };
        assert_eq!(in_use(&models), expected, "{step:?}");
        // What had not reached the disk may be cut short; nobody minds.
        tear(&dir.path().join(".staging"));
        add(&models, &from, &Signer::new(1).trust(), QUICK).unwrap();
        assert_eq!(in_use(&models), "yard@1.2.0", "{step:?}");
        models.roll_back().unwrap();
        assert_eq!(in_use(&models), "efficientnet_lite0", "{step:?}: the way back is kept");
    }
}

/// Cuts every file below `dir` in half.
fn tear(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            tear(&path);
        } else {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
}

#[test]
fn sigkill_at_any_time_leaves_the_old_or_the_new_in_use() {
    let (dir, models) = shipped();
    bundle_file(dir.path(), &model_bundle(&Signer::new(1), "yard", "1.2.0", as_is));
    let mut dead = 0;
    for round in 0..16_u64 {
        let mut child = child("child_adds_a_model", dir.path(), "", None);
        thread::sleep(Duration::from_millis(round * 37));
        child.kill().unwrap();
        dead += u32::from(!child.wait().unwrap().success());
        let name = in_use(&models);
        assert!(["efficientnet_lite0", "yard@1.2.0"].contains(&name.as_str()), "{round}: {name}");
    }
    assert!(dead > 4, "only {dead} were killed before they were done");
    let mut child = child("child_adds_a_model", dir.path(), "", None);
    assert!(child.wait().unwrap().success());
    assert_eq!(in_use(&models), "yard@1.2.0");
}

#[test]
fn a_disk_that_fills_up_on_the_way_leaves_the_old_in_use() {
    let (dir, models) = shipped();
    let bytes = model_bundle(&Signer::new(1), "yard", "1.2.0", as_is);
    let blocks = bytes.len() as u64 / 512;
    bundle_file(dir.path(), &bytes);
    for limit in [0, 1, 8, 12, 40, blocks / 2, blocks - 100] {
        let child = child("child_adds_a_model", dir.path(), "", Some(limit));
        let out = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&out.stdout);
        assert!(told.contains("refused cannot"), "{limit}: {told}");
        assert!(!told.contains("damaged"), "{limit}: the disk is at fault: {told}");
        assert_eq!(in_use(&models), "efficientnet_lite0", "{limit}");
        assert!(!dir.path().join(".staging").exists(), "{limit}: room is given back");
    }
    let child = child("child_adds_a_model", dir.path(), "", None);
    let out = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("added yard@1.2.0"));
}

#[test]
fn two_at_once_do_not_mix() {
    let (dir, models) = shipped();
    let bytes = model_bundle(&Signer::new(1), "yard", "1.2.0", as_is);
    let from = bundle_file(dir.path(), &bytes);
    let mut second = None;
    models
        .add(&from, &Signer::new(1).trust(), QUICK, &mut |step| {
            if step == Step::Verified {
                second = Some(add(&models, &from, &Signer::new(1).trust(), QUICK));
            }
        })
        .unwrap();
    let error = second.unwrap().unwrap_err().to_string();
    assert!(error.contains("another pawlatch"), "{error}");
    assert_eq!(in_use(&models), "yard@1.2.0");
}
