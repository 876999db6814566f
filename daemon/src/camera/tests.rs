use std::cmp::Ordering;
use std::fs;

use image::codecs::gif::GifEncoder;
use image::{Delay, Rgba, RgbaImage};

use super::directory::by_name;
use super::*;
use crate::clock::Clock;
use crate::slot::{Taken, slot};

fn settings(source: &str, repeat: bool) -> CameraSettings {
    CameraSettings {
        source: Some(source.parse().unwrap()),
        fallback: None,
        mounting: Mounting::default(),
        slowest: 1.0,
        fps: 10.0,
        repeat,
    }
}

/// A PNG of 4 by 4 pixels of grey `level`.
fn write_grey(path: &Path, level: u8) {
    image::RgbImage::from_pixel(4, 4, image::Rgb([level; 3])).save(path).unwrap();
}

/// Level of the first pixel and time of every frame.
fn play(source: &mut dyn FrameSource, most: usize) -> Vec<(u8, u64)> {
    let mut seen = Vec::new();
    while let Some(frame) = source.next().unwrap() {
        seen.push((frame.pixels()[0], frame.captured_at().as_millis()));
        if seen.len() == most {
            break;
        }
    }
    seen
}

#[test]
fn sources_are_read_and_written_alike() {
    for text in ["dir:/a/b", "file:c.mp4", "sim:", "frames/x", "/a:b/c"] {
        assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
    }
    for text in ["", "ftp:x", "dir:", "sim:dog"] {
        let error = text.parse::<Source>().unwrap_err().to_string();
        assert!(error.contains("dir:PATH"), "{error}");
    }
}

#[test]
fn a_directory_is_played_in_name_order_at_its_rate() {
    let dir = tempfile::tempdir().unwrap();
    write_grey(&dir.path().join("f10.png"), 100);
    write_grey(&dir.path().join("f9.PNG"), 90);
    write_grey(&dir.path().join("f1.png"), 10);
    write_grey(&dir.path().join(".hidden.png"), 1);
    fs::write(dir.path().join("notes.txt"), "no picture").unwrap();
    let source = format!("dir:{}", dir.path().display());
    let mut once = open(&settings(&source, false), Clock::start()).unwrap();
    assert_eq!(play(once.as_mut(), 9), [(10, 0), (90, 100), (100, 200)]);
    let mut again = open(&settings(&source, true), Clock::start()).unwrap();
    let seen = play(again.as_mut(), 5);
    assert_eq!(seen, [(10, 0), (90, 100), (100, 200), (10, 300), (90, 400)]);
}

#[test]
fn names_are_ordered_as_a_person_would() {
    assert_eq!(by_name("a9", "a10"), Ordering::Less);
    assert_eq!(by_name("0009", "0010"), Ordering::Less);
    assert_eq!(by_name("a01", "a1"), Ordering::Less);
    assert_eq!(by_name("a1b", "a1"), Ordering::Greater);
    assert_eq!(by_name("x", "x"), Ordering::Equal);
    assert_eq!(by_name("99999999999999999999998", "99999999999999999999999"), Ordering::Less);
}

#[test]
fn what_cannot_be_played_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refuse = |source: &str, part: &str| {
        let error = open(&settings(source, false), Clock::start()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    refuse(&format!("dir:{}", dir.path().display()), "holds no picture");
    refuse("/nowhere/x.mp4", "/nowhere/x.mp4");
    let path = dir.path().join("cut.mp4");
    fs::write(&path, b"\0\0\0\x18ftypisom\0\0\x02\0").unwrap();
    refuse(path.to_str().unwrap(), "MP4");
    fs::write(&path, b"just text").unwrap();
    refuse(path.to_str().unwrap(), "cut.mp4");
    fs::write(dir.path().join("bad.jpg"), b"\xff\xd8\xff\xe0").unwrap();
    let mut source = open(&settings(dir.path().to_str().unwrap(), false), Clock::start()).unwrap();
    assert!(source.next().unwrap_err().to_string().contains("bad.jpg"));
    let unset = CameraSettings { source: None, ..settings("sim:", false) };
    assert!(matches!(open(&unset, Clock::start()), Err(CameraError::Unset)));
}

#[test]
fn an_animated_gif_keeps_its_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walk.gif");
    let mut encoder = GifEncoder::new(fs::File::create(&path).unwrap());
    for level in [0, 128, 255] {
        let picture = RgbaImage::from_pixel(8, 8, Rgba([level, level, level, 255]));
        let delay = Delay::from_numer_denom_ms(250, 1);
        encoder.encode_frame(image::Frame::from_parts(picture, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    let mut source = open(&settings(path.to_str().unwrap(), false), Clock::start()).unwrap();
    let times: Vec<u64> = play(source.as_mut(), 9).iter().map(|(_, ms)| *ms).collect();
    assert_eq!(times, [0, 250, 500]);
}

#[test]
fn one_picture_is_a_film_of_one_frame() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.png");
    write_grey(&path, 7);
    let mut source =
        open(&settings(&format!("file:{}", path.display()), false), Clock::start()).unwrap();
    assert_eq!(play(source.as_mut(), 9), [(7, 0)]);
}

#[test]
fn h264_videos_are_decoded_in_full() {
    let clips = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/clips");
    if !clips.is_dir() {
        assert!(std::env::var_os("CI").is_none(), "../shared is needed");
        eprintln!("skipped: ../shared is absent");
        return;
    }
    for name in ["cat_chair", "dog_field", "petdoor_yard_noir"] {
        let path = clips.join(format!("{name}.mp4"));
        let mut source = VideoSource::open(&path).unwrap();
        let (mut frames, mut last) = (0, None);
        while let Some(frame) = source.next().unwrap() {
            assert!(last.is_none_or(|last| frame.captured_at() > last), "{name}: {frame:?}");
            last = Some(frame.captured_at());
            frames += 1;
        }
        assert!(frames > 20, "{name}: only {frames} frames");
        let bytes = fs::read(&path).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let cut = dir.path().join("cut.mp4");
        for part in [bytes.len() / 3, bytes.len() * 2 / 3] {
            fs::write(&cut, &bytes[..part]).unwrap();
            let played = VideoSource::open(&cut).and_then(|mut source| {
                while source.next()?.is_some() {}
                Ok(())
            });
            let error = played.unwrap_err().to_string();
            assert!(error.contains("cut.mp4"), "{error}");
        }
    }
}

#[test]
fn a_scene_is_the_same_every_time_and_never_stands_still() {
    let walker = Actor {
        picture: RgbaImage::from_pixel(20, 30, Rgba([200, 30, 30, 255])),
        enters: Duration::from_millis(100),
        leaves: Duration::from_millis(900),
        from: (0.1, 0.9),
        to: (0.9, 0.9),
        height: (0.2, 0.4),
    };
    let length = Some(Duration::from_secs(1));
    let scene = Scene { actors: vec![walker], length, ..Scene::yard() };
    let film = || {
        let mut source = SimulatedSource::new(scene.clone(), 10.0);
        let mut frames = Vec::new();
        while let Some(frame) = source.next().unwrap() {
            frames.push(frame.pixels().to_vec());
        }
        frames
    };
    let (first, second) = (film(), film());
    assert_eq!(first.len(), 10);
    assert!(first == second);
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn captured_frames_are_stamped_with_the_running_time() {
    let (sender, receiver) = slot();
    let clock = Clock::start();
    std::thread::sleep(Duration::from_millis(30));
    let length = Some(Duration::from_millis(100));
    let scene = Scene { length, ..Scene::yard() };
    let thread = capture(Box::new(SimulatedSource::new(scene, 50.0)), clock, sender).unwrap();
    let mut last = Uptime::ZERO;
    loop {
        match receiver.take(Duration::from_secs(5)) {
            Taken::Value(frame) => {
                assert!(frame.captured_at() > last && frame.captured_at() <= clock.now());
                last = frame.captured_at();
            }
            Taken::Nothing => panic!("no frame"),
            Taken::Closed => break,
        }
    }
    assert!(last >= Uptime::from_millis(30));
    thread.join().unwrap().unwrap();
}
