//! The commands of wiring day, as processes, on lines that are files.

#![expect(clippy::unwrap_used, reason = "a test may be blunt")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

/// A strike on line 17 with, or without, a sensor on line 22.
fn config(dir: &Path, sensor: bool, more: &str) -> String {
    let lines = dir.join("lines");
    fs::create_dir_all(&lines).unwrap();
    let feedback =
        if sensor { "locked_line = \"22 pull-up active-low\"" } else { "feedback = false" };
    let text = format!(
        "[door]\nhold_open_for_ms = 20000\nrelock_within_ms = 400\n\
         [latch]\nkind = \"solenoid\"\nline = \"GPIO17\"\n{feedback}\ntravel_ms = 100\n\
         [lines]\nboard = \"simulated\"\nsimulated_dir = {lines:?}\n{more}"
    );
    let path = dir.join("pawlatch.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn pawlatch(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pawlatch"))
        .args(arguments)
        .env("PAWLATCH_MODELS_DIR", concat!(env!("CARGO_MANIFEST_DIR"), "/../models"))
        .env_remove("PAWLATCH_LOG")
        .output()
        .unwrap()
}

fn line(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join("lines").join(name)).unwrap_or_default()
}

fn set(dir: &Path, name: &str, high: bool) {
    fs::write(dir.join("lines").join(name), if high { "1" } else { "0" }).unwrap();
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn json_lines(out: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&out.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn lock_drives_the_line_and_believes_the_sensor() {
    let dir = TempDir::new().unwrap();
    let file = config(dir.path(), true, "");
    set(dir.path(), "17", true);
    set(dir.path(), "22", false);
    let out = pawlatch(&["lock", "--config", &file]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(line(dir.path(), "17"), "0");
    // The bolt does not come home.
    set(dir.path(), "22", true);
    let out = pawlatch(&["lock", "--config", &file]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("look at the door"), "{}", stderr(&out));
}

#[test]
fn lock_finds_the_latch_in_a_configuration_that_is_wrong_elsewhere() {
    let dir = TempDir::new().unwrap();
    let file = config(dir.path(), false, "[nonsense]\nx = 1\n");
    set(dir.path(), "17", true);
    let out = pawlatch(&["lock", "--config", &file]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    assert!(stderr(&out).contains("nonsense"), "{}", stderr(&out));
    assert_eq!(line(dir.path(), "17"), "0");
}

#[test]
fn lock_needs_nothing_of_what_the_owner_changed_on_the_page() {
    let dir = TempDir::new().unwrap();
    let journal = dir.path().join("kept");
    // At an early boot it may not be read; a directory cannot be read by anybody.
    fs::create_dir_all(journal.join("owner.toml")).unwrap();
    let wishes = format!("[journal]\ndir = {:?}\n", journal.display().to_string());
    let file = config(dir.path(), false, &wishes);
    set(dir.path(), "17", true);
    let out = pawlatch(&["lock", "--config", &file]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(line(dir.path(), "17"), "0");
}

#[test]
fn latch_test_goes_to_and_fro_and_ends_locked() {
    let dir = TempDir::new().unwrap();
    let file = config(dir.path(), false, "");
    let arguments =
        ["latch", "test", "--config", &file, "--rounds", "2", "--open-ms", "100", "--json"];
    let out = pawlatch(&arguments);
    assert!(out.status.success(), "{}", stderr(&out));
    let told: Vec<String> =
        json_lines(&out).iter().map(|l| l["driven"].as_str().unwrap().to_owned()).collect();
    assert_eq!(told, ["unlocked", "locked", "unlocked", "locked"]);
    assert_eq!(line(dir.path(), "17"), "0");
    // A sensor that never moves: the wire is on the wrong pin.
    let file = config(dir.path(), true, "");
    set(dir.path(), "22", false);
    let out = pawlatch(&["latch", "test", "--config", &file, "--rounds", "1"]);
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert_eq!(line(dir.path(), "17"), "0");
}

#[test]
fn led_test_shows_and_goes_out() {
    let dir = TempDir::new().unwrap();
    let file = config(dir.path(), false, "[panel]\ngreen_line = \"6\"\n");
    let out = pawlatch(&["led", "test", "--config", &file, "--each-ms", "100"]);
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 10);
    assert_eq!(line(dir.path(), "6"), "0");
    let none = config(dir.path(), false, "");
    assert_eq!(pawlatch(&["led", "test", "--config", &none]).status.code(), Some(2));
}

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let dir = TempDir::new().unwrap();
    let journal = format!("[journal]\ndir = {:?}\n", dir.path().join("journal"));
    let file = config(dir.path(), false, &journal);
    let out = pawlatch(&["doctor", "--config", &file, "--json"]);
    let findings = json_lines(&out);
    let verdict = |check: &str| {
        let found = findings.iter().find(|f| f["check"] == check);
        found.unwrap_or_else(|| panic!("no {check}"))["verdict"].as_str().unwrap()
    };
    assert_eq!((verdict("configuration"), verdict("lines")), ("ok", "ok"));
    assert_ne!(verdict("models"), "bad");
    // No camera is configured: that alone is bad.
    assert_eq!((verdict("camera"), out.status.code()), ("bad", Some(1)));
    let camera = findings.iter().find(|f| f["check"] == "camera").unwrap();
    assert!(camera["remedy"].as_str().unwrap().contains("camera.source"));
}

#[test]
fn check_names_the_camera_that_is_not_there() {
    let dir = TempDir::new().unwrap();
    let file = config(dir.path(), false, "[camera]\nsource = \"http://127.0.0.1:1/x\"\n");
    let out = pawlatch(&["check", "--config", &file]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("http://127.0.0.1:1/x"), "{}", stderr(&out));
}

#[test]
fn camera_test_measures_what_comes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = peer.read(&mut request).unwrap();
        let head = "HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n";
        peer.write_all(head.as_bytes()).unwrap();
        for n in 0..200_u32 {
            // Blocks with a slope, and no two alike: a scene.
            let picture = image::RgbImage::from_fn(160, 120, |x, y| {
                let luma = 40 + (x / 20) * 15 + (y / 30) * 20 + x / 8 + (x + n) % 3;
                image::Rgb([luma as u8; 3])
            });
            let mut jpeg = Vec::new();
            let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90);
            picture.write_with_encoder(encoder).unwrap();
            if peer.write_all(b"--b\r\n\r\n").and_then(|()| peer.write_all(&jpeg)).is_err() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let dir = TempDir::new().unwrap();
    let kept = dir.path().join("last.png");
    let source = format!("http://{address}/video");
    let arguments =
        ["camera", "test", &source, "--seconds", "1", "--json", "--save", kept.to_str().unwrap()];
    let out = pawlatch(&arguments);
    assert!(out.status.success(), "{}", stderr(&out));
    let told = &json_lines(&out)[0];
    assert_eq!((told["width"].as_u64(), told["health"].as_str()), (Some(160), Some("good")));
    let rate = told["rate"].as_f64().unwrap();
    assert!((4.0..25.0).contains(&rate), "{rate}");
    assert_eq!(image::open(&kept).unwrap().width(), 160);
}
