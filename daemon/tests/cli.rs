//! The command line as a contract: what comes out on standard output, the exit codes, and that
//! bad input gets one clear error and never a panic.

#![expect(clippy::unwrap_used, clippy::type_complexity, reason = "a test may be blunt")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use image::{DynamicImage, ImageFormat, RgbImage};
use pawlatch::camera::FrameSource as _;
use pawlatch::demo::{Yard, visits};
use serde_json::Value;
use tempfile::TempDir;

const CLASSES: [&str; 5] = ["dog", "cat", "person", "other", "nothing"];

#[test]
fn classify_gives_probabilities_of_each_picture() {
    let dir = yard_frames(0, &[0, 40]);
    let out = ok(&["classify", "--json", "--topk", "3", path(dir.path())]);
    let lines = json_lines(&out);
    assert_eq!(lines.len(), 2);
    for (line, name) in lines.iter().zip(["0000.png", "0040.png"]) {
        assert_eq!(keys(line), ["classes", "file", "model", "topk"]);
        assert!(line["file"].as_str().unwrap().ends_with(name));
        assert_eq!(line["model"], "pet_classifier");
        assert_eq!(line["classes"].as_object().unwrap().len(), 5);
        let sum: f64 = CLASSES.iter().map(|c| line["classes"][*c].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        let topk = line["topk"].as_array().unwrap();
        assert_eq!(topk.len(), 3);
        let scores: Vec<f64> = topk.iter().map(|t| t["score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b) && topk[0]["label"].is_string());
    }
    // The dog stands in the middle of the second picture.
    assert!(lines[1]["classes"]["dog"].as_f64().unwrap() > 0.9, "{}", lines[1]);
}

#[test]
fn detect_gives_boxes_in_pixels_of_the_picture() {
    let dir = yard_frames(0, &[40]);
    let drawn = dir.path().join("drawn.png");
    let file = dir.path().join("0040.png");
    let out = ok(&["detect", "--json", path(&file), "-o", path(&drawn)]);
    let lines = json_lines(&out);
    assert_eq!(keys(&lines[0]), ["detections", "file", "model"]);
    let detections = lines[0]["detections"].as_array().unwrap();
    let dog = detections.first().expect("the dog is found");
    assert_eq!(keys(dog), ["box", "class", "label", "score"]);
    assert_eq!(dog["class"], "dog");
    let b: Vec<f64> = dog["box"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let inside = b[0] >= 0.0 && b[0] < b[2] && b[2] <= 640.0 && b[1] < b[3] && b[3] <= 480.0;
    assert!(b.len() == 4 && inside, "{b:?}");
    // Four seconds in she stands around (300, 290).
    assert!(b[0] < 300.0 && b[2] > 300.0 && b[1] < 290.0 && b[3] > 290.0, "{b:?}");
    assert_eq!(image::open(&drawn).unwrap().to_rgb8().dimensions(), (640, 480));
}

#[test]
fn localize_gives_the_heat_of_a_class() {
    let dir = yard_frames(0, &[40]);
    let out = ok(&["localize", "--json", "--class", "dog", path(dir.path())]);
    let line = &json_lines(&out)[0];
    let (w, h) =
        (line["heat"]["width"].as_u64().unwrap(), line["heat"]["height"].as_u64().unwrap());
    assert_eq!(line["heat"]["values"].as_array().unwrap().len() as u64, w * h);
    assert_eq!(line["boxes"].as_array().unwrap().len(), 1, "{}", line["boxes"]);
}

#[test]
fn unusual_pictures_are_pictures_too() {
    let dir = TempDir::new().unwrap();
    let grey16 = image::ImageBuffer::<image::Luma<u16>, _>::from_fn(40, 30, |x, y| {
        image::Luma([(x * 1_000 + y * 700) as u16])
    });
    DynamicImage::ImageLuma16(grey16).save(dir.path().join("16bit.png")).unwrap();
    RgbImage::from_pixel(1, 1, image::Rgb([9, 8, 7])).save(dir.path().join("1x1.png")).unwrap();
    let cmyk = base64::engine::general_purpose::STANDARD.decode(CMYK_JPEG).unwrap();
    fs::write(dir.path().join("cmyk.jpg"), cmyk).unwrap();
    fs::write(dir.path().join("moving.gif"), animation()).unwrap();
    let out = ok(&["classify", "--json", path(dir.path())]);
    assert_eq!(json_lines(&out).len(), 4);
    let out = ok(&["detect", "--json", path(dir.path())]);
    assert_eq!(json_lines(&out).len(), 4);
}

#[test]
fn a_bad_picture_is_named_and_the_others_are_still_processed() {
    let dir = yard_frames(0, &[0]);
    let good = dir.path().join("0000.png");
    let mut jpeg = Vec::new();
    let picture = image::open(&good).unwrap();
    picture.write_to(&mut std::io::Cursor::new(&mut jpeg), ImageFormat::Jpeg).unwrap();
    let cases: [(&str, Option<Vec<u8>>, &str); 5] = [
        ("missing.jpg", None, "cannot read"),
        ("text.jpg", Some(b"Dear door, please open.".to_vec()), "not a JPEG, PNG"),
        ("cut.jpg", Some(jpeg[..jpeg.len() / 2].to_vec()), "cut short"),
        ("huge.png", Some(png_header(100_000, 100_000)), "16384"),
        ("empty.png", Some(Vec::new()), "not a JPEG, PNG"),
    ];
    for (name, bytes, remedy) in cases {
        let bad = dir.path().join(name);
        if let Some(bytes) = bytes {
            fs::write(&bad, bytes).unwrap();
        }
        for command in ["classify", "detect", "localize"] {
            let out = pawlatch(&[command, "--json", path(&bad), path(&good)]);
            let errors = stderr(&out);
            assert_eq!(out.status.code(), Some(1), "{command} {name}: {errors}");
            assert!(errors.contains(name) && errors.contains(remedy), "{command}: {errors}");
            assert!(errors.starts_with("error: ") && !errors.contains("panicked"), "{errors}");
            assert_eq!(json_lines(&out).len(), 1, "{command}: the good one is still there");
        }
    }
}

#[test]
fn an_empty_directory_says_what_a_picture_is() {
    let dir = TempDir::new().unwrap();
    let out = pawlatch(&["classify", path(dir.path())]);
    assert!(!out.status.success());
    assert!(stderr(&out).contains("holds no picture"), "{}", stderr(&out));
}

#[test]
fn models_that_are_not_what_they_should_be_are_refused() {
    let cases: [(&str, fn(&Path), &str); 5] = [
        ("tampered", |dir| flip_a_byte(&onnx(dir)), "sha256"),
        ("truncated", |dir| cut_in_half(&onnx(dir)), "sha256"),
        ("absent", |dir| fs::remove_file(onnx(dir)).unwrap(), "efficientnet_lite0.onnx"),
        ("wrong shape", |dir| edit(dir, "224, 224]", "256, 224]"), "256"),
        ("unknown key", |dir| edit(dir, "[input]", "[input]\nsize = 3"), "size"),
    ];
    let dir = yard_frames(0, &[0]);
    for (name, harm, told) in cases {
        let models = copy_of_models();
        harm(models.path());
        for arguments in [
            vec!["check"],
            vec!["classify", path(dir.path())],
            vec!["detect", path(dir.path())],
            vec!["replay", path(dir.path())],
            vec!["model", "verify"],
        ] {
            let out = pawlatch_with(models.path(), &arguments);
            let errors = stderr(&out);
            assert!(!out.status.success(), "{name}: {arguments:?}");
            assert!(errors.contains(told), "{name}: {arguments:?}: {errors}");
            assert!(!errors.contains("panicked"), "{name}: {arguments:?}: {errors}");
        }
    }
}

#[test]
fn the_manual_page_knows_every_command() {
    let page =
        fs::read_to_string(models_dir().with_file_name("deploy").join("pawlatch.1")).unwrap();
    let told: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix(".It Cm "))
        .flat_map(|line| line.split(" , "))
        .collect();
    let help = stdout(&ok(&["--help"]));
    let (_, rest) = help.split_once("Commands:\n").unwrap();
    let (list, _) = rest.split_once("\n\n").unwrap();
    let named = |line: &'_ str| line.strip_prefix("  ").is_some_and(|rest| !rest.starts_with(' '));
    let mut commands: Vec<&str> =
        list.lines().filter(|l| named(l)).filter_map(|l| l.split_whitespace().next()).collect();
    commands.retain(|command| *command != "help");
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.join(" ")
    };
    assert_eq!(sorted(told), sorted(commands));
}

#[test]
fn check_passes_what_is_sound_and_tells_every_fault() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("pawlatch.toml");
    fs::write(&config, "[door]\nopen_for_ms = 6000\n").unwrap();
    let out = ok(&["check", "--config", path(&config)]);
    assert!(stdout(&out).contains("pet_classifier"));
    assert!(stdout(&out).contains("note no camera"), "{}", stdout(&out));
    for (text, told) in [
        ("[door]\nopen_for = 6000\n", "open_for_ms"),
        ("[door]\nopen_for_ms = \"6 s\"\n", "open_for_ms"),
        ("[evidence]\nfalse_accept = 2.0\n", "false_accept"),
        ("[door\n", "pawlatch.toml"),
        ("[camera]\nsource = \"dir:/nowhere/at/all\"\n", "/nowhere/at/all"),
    ] {
        fs::write(&config, text).unwrap();
        let out = pawlatch(&["check", "--config", path(&config)]);
        let errors = stderr(&out);
        assert!(!out.status.success() && errors.contains(told), "{text}: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
    let out = pawlatch(&["check", "--config", "/nowhere/pawlatch.toml"]);
    assert!(!out.status.success() && stderr(&out).contains("/nowhere/pawlatch.toml"));
}

#[test]
fn a_wrong_configuration_or_command_line_ends_with_2() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("pawlatch.toml");
    fs::write(&config, "[dor]\n").unwrap();
    for arguments in [
        vec!["run", "--config", path(&config)],
        vec!["lock", "--config", path(&config)],
        vec!["classify"],
        vec!["no-such-command"],
        vec!["replay", path(dir.path()), "--fps", "0"],
    ] {
        let out = pawlatch(&arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {}", stderr(&out));
    }
}

#[test]
fn lock_locks_and_needs_no_model() {
    let nowhere = TempDir::new().unwrap();
    let out = pawlatch_with(nowhere.path(), &["lock"]);
    assert!(out.status.success(), "{}", stderr(&out));
}

#[test]
fn replay_decides_the_same_every_time_and_concludes() {
    let dog = yard_frames(0, &(0..60).collect::<Vec<_>>());
    let out = ok(&["replay", "--json", path(dog.path())]);
    let lines = json_lines(&out);
    let (last, decisions) = lines.split_last().unwrap();
    assert_eq!(keys(last), ["opened", "reasons", "verdict"]);
    assert_eq!((&last["opened"], &last["verdict"]), (&Value::from(1), &Value::from("let_in")));
    assert!(!last["reasons"].as_array().unwrap().is_empty());
    assert!(decisions.iter().all(|d| d["at"].is_u64() && d["proofs"].is_array()));
    // A step for every frame at 10 a second and one between each two.
    assert!(decisions.len() > 2 * 59, "{}", decisions.len());
    let again = ok(&["replay", "--json", path(dog.path())]);
    assert!(out.stdout == again.stdout, "the same bytes");

    let cat = yard_frames(1, &(0..60).collect::<Vec<_>>());
    let report = cat.path().join("report.html");
    let out = ok(&["replay", "--json", path(cat.path()), "--report", path(&report)]);
    let lines = json_lines(&out);
    let last = lines.last().unwrap();
    assert_eq!(last["opened"], 0);
    assert_eq!(last["verdict"], "kept_shut");
    let reasons = last["reasons"].to_string();
    assert!(reasons.contains("cat"), "{reasons}");
    assert_stands_alone(&report);
}

#[test]
fn replay_at_another_rate_takes_another_time() {
    let dir = yard_frames(0, &(0..5).collect::<Vec<_>>());
    let last_frame = |fps: &str| {
        let out = ok(&["replay", "--json", path(dir.path()), "--fps", fps]);
        json_lines(&out).len()
    };
    assert!(last_frame("2") > last_frame("10"));
}

#[test]
fn bench_ends_with_its_figures() {
    let onnx = onnx(&models_dir());
    let out = ok(&["bench", "--json", "--model", path(&onnx), "--threads", "2", "--runs", "5"]);
    let lines = json_lines(&out);
    let line = lines.last().unwrap();
    assert_eq!(keys(line), ["model", "p50_ms", "p95_ms", "p99_ms", "threads"]);
    assert_eq!(line["threads"], 2);
    let [p50, p95, p99] = ["p50_ms", "p95_ms", "p99_ms"].map(|k| line[k].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p95 && p95 <= p99);
}

#[test]
fn bench_refuses_what_is_no_network() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("noise.onnx");
    fs::write(&file, [7; 4_000]).unwrap();
    for model in [&file, &dir.path().join("missing.onnx")] {
        let out = pawlatch(&["bench", "--json", "--model", path(model)]);
        let errors = stderr(&out);
        assert_eq!(out.status.code(), Some(1), "{errors}");
        assert!(errors.contains(path(model)) && !errors.contains("panicked"), "{errors}");
    }
}

#[test]
fn two_models_of_a_kind_need_a_choice() {
    let models = copy_of_models();
    let twin = models.path().join("twin");
    copy_dir(&models.path().join("efficientnet_lite0"), &twin);
    let manifest = fs::read_to_string(twin.join("model.toml")).unwrap();
    let manifest = manifest.replace("name = \"efficientnet_lite0\"", "name = \"twin\"");
    fs::write(twin.join("model.toml"), manifest).unwrap();
    let out = pawlatch_with(models.path(), &["check"]);
    assert!(!out.status.success() && stderr(&out).contains("model use"), "{}", stderr(&out));
    let out = pawlatch_with(models.path(), &["model", "use", "twin"]);
    assert!(out.status.success(), "{}", stderr(&out));
    let active = fs::read_to_string(models.path().join("active.toml")).unwrap();
    assert!(active.contains("classifier = \"twin\"") && !active.contains("detector"), "{active}");
    assert!(pawlatch_with(models.path(), &["check"]).status.success());
    let out = pawlatch_with(models.path(), &["model", "list", "--json"]);
    let used: Vec<(Value, Value)> =
        json_lines(&out).iter().map(|l| (l["name"].clone(), l["in_use"].clone())).collect();
    assert_eq!(used, [("efficientnet_lite0".into(), false.into()), ("twin".into(), true.into())]);
    // One that cannot be used is not put in use.
    flip_a_byte(&onnx(models.path()));
    let out = pawlatch_with(models.path(), &["model", "use", "efficientnet_lite0"]);
    assert!(!out.status.success());
    assert_eq!(fs::read_to_string(models.path().join("active.toml")).unwrap(), active);
    let out = pawlatch_with(models.path(), &["model", "use", "nobody"]);
    assert!(!out.status.success() && stderr(&out).contains("twin"), "{}", stderr(&out));
}

#[test]
fn the_demonstration_lets_the_dog_in_and_nobody_else() {
    let dir = TempDir::new().unwrap();
    let report = dir.path().join("demo.html");
    let out = ok(&["demo", "--report", path(&report)]);
    let told = stdout(&out);
    assert_eq!(told.matches("The dog was let in.").count(), 1, "{told}");
    assert_eq!(told.matches("The door was kept shut.").count(), 3, "{told}");
    assert!(told.contains("kept shut: cat"), "{told}");
    assert!(stderr(&out).contains("demo.html"));
    assert_stands_alone(&report);
}

#[test]
fn a_journal_that_is_not_there_is_said_so() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("pawlatch.toml");
    let journal = dir.path().join("journal");
    fs::write(&config, format!("[journal]\ndir = {:?}\n", path(&journal))).unwrap();
    for arguments in [vec!["events", "list"], vec!["events", "show", "1"], vec!["replay", "1"]] {
        let out = pawlatch(&[&arguments[..], &["--config", path(&config)]].concat());
        assert_eq!(out.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&out).contains("journal"), "{}", stderr(&out));
    }
}

/// A report fetches nothing.
fn assert_stands_alone(report: &Path) {
    let html = fs::read_to_string(report).unwrap();
    assert!(
        html.starts_with("<!DOCTYPE html>") && html.contains("<svg") && html.contains("sha256")
    );
    for outside in ["src=\"http", "href=\"http", "url(", "@import", "<script", "<link", "<iframe"] {
        assert!(!html.contains(outside), "{outside}");
    }
}

fn pawlatch(arguments: &[&str]) -> Output {
    pawlatch_with(&models_dir(), arguments)
}

fn pawlatch_with(models: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pawlatch"))
        .args(arguments)
        .args(["--models-dir", path(models)])
        .env_remove("PAWLATCH_LOG")
        .env_remove("PAWLATCH_MODELS_DIR")
        .output()
        .unwrap()
}

fn ok(arguments: &[&str]) -> Output {
    let out = pawlatch(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", stderr(&out));
    out
}

fn stdout(out: &Output) -> String {
    String::from_utf8(out.stdout.clone()).unwrap()
}

fn stderr(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).unwrap()
}

/// Every line of standard output, which is nothing but JSON objects.
fn json_lines(out: &Output) -> Vec<Value> {
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    stdout(out).lines().map(line).collect()
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn models_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn onnx(models: &Path) -> PathBuf {
    models.join("efficientnet_lite0/efficientnet_lite0.onnx")
}

fn copy_of_models() -> TempDir {
    let dir = TempDir::new().unwrap();
    copy_dir(&models_dir().join("efficientnet_lite0"), &dir.path().join("efficientnet_lite0"));
    dir
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in ["model.toml", "efficientnet_lite0.onnx"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

fn flip_a_byte(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn cut_in_half(file: &Path) {
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
}

fn edit(models: &Path, from: &str, to: &str) {
    let file = models.join("efficientnet_lite0/model.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from));
    fs::write(&file, text.replacen(from, to, 1)).unwrap();
}

/// Frames of a visit of the demonstration, as files.
fn yard_frames(visit: usize, numbers: &[usize]) -> TempDir {
    let dir = TempDir::new().unwrap();
    let yard = Yard::load().unwrap();
    let visits = visits();
    let mut film = yard.film(&visits[visit]);
    for number in 0..=*numbers.last().unwrap() {
        let frame = film.next().unwrap().unwrap();
        if numbers.contains(&number) {
            let (w, h) = (frame.width(), frame.height());
            let picture = RgbImage::from_raw(w, h, frame.pixels().to_vec()).unwrap();
            picture.save(dir.path().join(format!("{number:04}.png"))).unwrap();
        }
    }
    dir
}

/// The beginning of a PNG that claims a size.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend(crc32(&header).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    png
}

/// CRC-32 as in ISO 3309, which PNG uses.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| {
            if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 }
        })
    })
}

fn animation() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for level in [40_u8, 200] {
        let picture = RgbImage::from_pixel(24, 18, image::Rgb([level, 90, 30]));
        encoder.encode(picture.as_raw(), 24, 18, image::ExtendedColorType::Rgb8).unwrap();
    }
    drop(encoder);
    bytes
}

/// A 16x16 JPEG in cyan, magenta, yellow and black.
const CMYK_JPEG: &str = "\
    /9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLU\
    BXQUZMTlJTUjI+WmFaUGBKUVJP/8AAFAgAEAAQBEMRAE0RAFkRAEsRAP/EABYAAQEBAAAAAAAAAAAAAAAAAAAGB//E\
    ABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAOBEMATQBZAEsAAD8AkmkKlpwAAAD/2Q==";
