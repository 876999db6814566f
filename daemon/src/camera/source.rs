//! Where pictures come from, as the owner writes it: one grammar for every kind of camera.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::CameraError;

/// Every way to write a source: form, what it is, an example. The documentation and the errors
/// are made from this table.
pub const GRAMMAR: [(&str, &str, &str); 10] = [
    (
        "v4l2:DEVICE[?OPTIONS]",
        "a camera of Linux: a webcam, a capture stick",
        "v4l2:/dev/video0?size=640x480&rate=10",
    ),
    (
        "rpicam:N[?OPTIONS]",
        "camera module N of a Raspberry Pi, through rpicam-vid",
        "rpicam:0?size=640x480&rate=10",
    ),
    (
        "argus:N[?OPTIONS]",
        "CSI sensor N of a Jetson, through gst-launch-1.0",
        "argus:0?size=1280x720&rate=15",
    ),
    ("rtsp://…", "an IP camera: H.264 or JPEG over RTSP", "rtsp://door:secret@192.0.2.7/stream2"),
    (
        "http://… or https://…",
        "an IP camera: MJPEG, or one JPEG for each request",
        "http://192.0.2.7/video.mjpg",
    ),
    ("dir:PATH", "a directory of pictures, in name order", "dir:visits/tuesday"),
    ("file:PATH", "an H.264 MP4, an animated GIF or WebP, or one picture", "file:visit.mp4"),
    ("sim:", "a simulated yard", "sim:"),
    ("demo:", "the visits of the demonstration, again and again", "demo:"),
    ("PATH", "a directory or a file", "visit.mp4"),
];

/// The options behind the question mark, each `NAME=VALUE`, joined by `&`.
pub const OPTIONS: [(&str, &str); 5] = [
    ("size", "width and height in pixels, such as 640x480: even, 32 to 4096"),
    ("rate", "frames per second, 1 to 120"),
    ("format", "mjpeg, yuyv, nv12, grey or yuv420; what the camera has, if absent"),
    ("exposure", "auto, or a number in the camera's own unit (v4l2 only)"),
    ("focus", "auto, or a number in the camera's own unit (v4l2 only)"),
];

/// A source of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `dir:PATH`: pictures in name order.
    Directory(PathBuf),
    /// `file:PATH`: a video, an animation or one picture.
    File(PathBuf),
    /// `sim:`: a simulated yard with nobody in it.
    Simulated,
    /// `demo:`: the visits of the demonstration, without end.
    Demo,
    /// A bare path: a directory or a file, whichever it is when opened.
    Path(PathBuf),
    /// A camera.
    Live(LiveSource),
}

/// A camera that gives pictures as they happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveSource {
    /// `v4l2:`: a device of Linux.
    V4l2 {
        /// Path of the device, or its name below `/dev/v4l/by-id`.
        device: String,
        /// What to ask of it.
        wish: Wish,
    },
    /// `rpicam:`: a camera module of a Raspberry Pi.
    Rpicam {
        /// Number of the module.
        camera: u8,
        /// What to ask of it.
        wish: Wish,
    },
    /// `argus:`: a CSI sensor of a Jetson.
    Argus {
        /// Number of the sensor.
        sensor: u8,
        /// What to ask of it.
        wish: Wish,
    },
    /// `rtsp:`: an IP camera.
    Rtsp(Address),
    /// `http:`: an IP camera.
    Http(Address),
}

/// What to ask of a camera; `None` leaves it to what the camera offers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// Width and height, pixels.
    pub size: Option<(u32, u32)>,
    /// Frames per second.
    pub rate: Option<u32>,
    /// How pixels are coded.
    pub format: Option<Format>,
    /// Exposure.
    pub exposure: Option<Setting>,
    /// Focus.
    pub focus: Option<Setting>,
}

/// How pixels are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JPEG for each frame.
    Mjpeg,
    /// 4:2:2, packed.
    Yuyv,
    /// 4:2:0, chroma interleaved.
    Nv12,
    /// Luma only.
    Grey,
    /// 4:2:0, three planes.
    Yuv420,
}

impl Format {
    const ALL: [(&'static str, Self); 5] = [
        ("mjpeg", Self::Mjpeg),
        ("yuyv", Self::Yuyv),
        ("nv12", Self::Nv12),
        ("grey", Self::Grey),
        ("yuv420", Self::Yuv420),
    ];

    /// The name, as in the options.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }
}

/// A control of the camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Left to the camera.
    Auto,
    /// Fixed.
    Value(i32),
}

/// A URL whose user and password are kept apart, and whose password is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    url: String,
    login: Option<(String, String)>,
}

impl Address {
    /// The URL without user and password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// User and password.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (login, host) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((login, host)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                (Some((unescape(user)?, unescape(password)?)), host)
            }
        };
        let sound = !host.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control());
        sound.then(|| Self { url: format!("{scheme}://{host}{path}"), login })
    }
}

/// Undoes `%41`-escapes.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let (code, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.login, self.url.split_once("://")) {
            (Some((user, _)), Some((scheme, rest))) => write!(f, "{scheme}://{user}:***@{rest}"),
            _ => f.write_str(&self.url),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Source {
    type Err = CameraError;
    fn from_str(text: &str) -> Result<Self, CameraError> {
        let wrong = |problem: &str| CameraError::Source {
            // What could be a password is not repeated.
            given: text.rsplit_once('@').map_or(text, |(_, end)| end).to_owned(),
            problem: problem.to_owned(),
        };
        let Some((scheme, rest)) = text.split_once(':') else {
            if text.is_empty() {
                return Err(wrong("it is empty"));
            }
            return Ok(Self::Path(text.into()));
        };
        let (place, options) = rest.split_once('?').map_or((rest, ""), |(p, o)| (p, o));
        let wish = || Wish::parse(options).map_err(|problem| wrong(&problem));
        let number = || place.parse::<u8>().map_err(|_| wrong("the camera's number is missing"));
        let address = || {
            Address::parse(text)
                .ok_or_else(|| wrong("it is not an address such as rtsp://HOST/PATH"))
        };
        Ok(match scheme {
            "dir" if !rest.is_empty() => Self::Directory(rest.into()),
            "file" if !rest.is_empty() => Self::File(rest.into()),
            "sim" if rest.is_empty() => Self::Simulated,
            "demo" if rest.is_empty() => Self::Demo,
            "v4l2" => {
                if !is_device(place) {
                    return Err(wrong("the device must be /dev/… or a name in /dev/v4l/by-id"));
                }
                Self::Live(LiveSource::V4l2 { device: place.to_owned(), wish: wish()? })
            }
            "rpicam" | "argus" => {
                let (number, wish) = (number()?, wish()?);
                if wish.exposure.is_some() || wish.focus.is_some() {
                    return Err(wrong("exposure and focus can only be set for v4l2"));
                }
                if scheme == "rpicam" {
                    check_rpicam(&wish).map_err(|problem| wrong(&problem))?;
                    Self::Live(LiveSource::Rpicam { camera: number, wish })
                } else {
                    if wish.format.is_some() {
                        return Err(wrong("the format of argus cannot be chosen"));
                    }
                    Self::Live(LiveSource::Argus { sensor: number, wish })
                }
            }
            "rtsp" => Self::Live(LiveSource::Rtsp(address()?)),
            "http" | "https" => Self::Live(LiveSource::Http(address()?)),
            // A path may hold a colon, but a scheme we do not know is no path.
            _ if scheme.contains('/') => Self::Path(text.into()),
            _ => return Err(wrong("there is no such kind of source")),
        })
    }
}

fn is_device(place: &str) -> bool {
    let tame = |c: char| c.is_ascii_alphanumeric() || "/_.-:+@".contains(c);
    let inside = place.strip_prefix("/dev/").unwrap_or(place);
    !inside.is_empty()
        && inside.chars().all(tame)
        && !inside.split('/').any(|part| part == "..")
        && (place.starts_with("/dev/") || !place.contains('/'))
}

/// rpicam-vid pads the rows of raw pictures to 64 pixels, and does not say so in the stream.
fn check_rpicam(wish: &Wish) -> Result<(), String> {
    match wish.format {
        Some(Format::Mjpeg) => Ok(()),
        None | Some(Format::Yuv420) => match wish.size {
            Some((width, _)) if !width.is_multiple_of(64) => {
                Err(format!("the width {width} is no multiple of 64; use one, or format=mjpeg"))
            }
            _ => Ok(()),
        },
        Some(other) => Err(format!("rpicam has no {}; use yuv420 or mjpeg", other.name())),
    }
}

impl Wish {
    fn parse(options: &str) -> Result<Self, String> {
        let mut wish = Self::default();
        let mut seen = Vec::new();
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let known = OPTIONS.iter().find(|(known, _)| *known == name);
            let Some((name, meaning)) = known else {
                let all: Vec<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
                return Err(format!("\"{name}\" is no option; there are: {}", all.join(", ")));
            };
            if seen.contains(name) {
                return Err(format!("{name} is given twice"));
            }
            seen.push(name);
            let wrong = || format!("{name} is \"{value}\"; expected {meaning}");
            match *name {
                "size" => wish.size = Some(size(value).ok_or_else(wrong)?),
                "rate" => {
                    let rate = value.parse().ok().filter(|rate| (1..=120).contains(rate));
                    wish.rate = Some(rate.ok_or_else(wrong)?);
                }
                "format" => {
                    let format = Format::ALL.iter().find(|(name, _)| *name == value);
                    wish.format = Some(format.ok_or_else(wrong)?.1);
                }
                "exposure" => wish.exposure = Some(setting(value).ok_or_else(wrong)?),
                _ => wish.focus = Some(setting(value).ok_or_else(wrong)?),
            }
        }
        Ok(wish)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = |value: Setting| match value {
            Setting::Auto => "auto".to_owned(),
            Setting::Value(n) => n.to_string(),
        };
        let options = [
            ("size", self.size.map(|(w, h)| format!("{w}x{h}"))),
            ("rate", self.rate.map(|rate| rate.to_string())),
            ("format", self.format.map(|format| format.name().to_owned())),
            ("exposure", self.exposure.map(setting)),
            ("focus", self.focus.map(setting)),
        ];
        let mut joint = '?';
        for (name, value) in options {
            if let Some(value) = value {
                write!(f, "{joint}{name}={value}")?;
                joint = '&';
            }
        }
        Ok(())
    }
}

fn size(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| {
        let side: u32 = text.parse().ok()?;
        ((32..=4_096).contains(&side) && side.is_multiple_of(2)).then_some(side)
    };
    Some((side(width)?, side(height)?))
}

fn setting(text: &str) -> Option<Setting> {
    if text == "auto" { Some(Setting::Auto) } else { text.parse().ok().map(Setting::Value) }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Simulated => f.write_str("sim:"),
            Self::Demo => f.write_str("demo:"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Live(live) => live.fmt(f),
        }
    }
}

impl fmt::Display for LiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4l2 { device, wish } => {
                write!(f, "v4l2:{device}")?;
                wish.write(f)
            }
            Self::Rpicam { camera, wish } => {
                write!(f, "rpicam:{camera}")?;
                wish.write(f)
            }
            Self::Argus { sensor, wish } => {
                write!(f, "argus:{sensor}")?;
                wish.write(f)
            }
            Self::Rtsp(address) | Self::Http(address) => address.fmt(f),
        }
    }
}

/// What the tables do not say.
const ADVICE: &str = "
- What is left out of the options is chosen: about 640 by 480, at least ten frames a second, the
  format that is cheapest to decode. What is given is a condition; if the camera does not have it,
  the error lists what it has. `pawlatch camera test` measures what really comes.
- A device can be named by its place (`/dev/video0`) or, better, by what udev calls it in
  `/dev/v4l/by-id`, which survives replugging: `v4l2:usb-046d_0825_4F-video-index0`.
- Devices that nokhwa refuses (sizes in steps, fractional rates, GREY, YU12) are read through V4L2
  itself.
- Only fixed programs are started for `rpicam:` and `argus:`, with numbers as arguments.
- A camera that fails, goes away or stalls is opened again, after 0.25 s at first and 10 s at most,
  for ever. Meanwhile the second camera's pictures are taken, if there is one; it is kept running.
  Without pictures the door is in fault, locked, and recovers by itself. Reads that never return
  are left behind; the fourth ends the program, which systemd starts anew.
- Pictures are stamped when they arrive; only the newest is looked at. One that stands still is a
  fault. Pictures of infra-red cameras are grey, and are looked at as they are.
- Passwords in addresses are never logged. RTSP runs within its TCP connection; a camera must be
  set to H.264, not H.265. Logging in to `http:` is Basic.
- `camera.rotate` and `camera.mirror` put right how the camera hangs, for recordings too.
";

/// Every form, for errors.
pub(super) fn forms() -> String {
    let forms: Vec<&str> = GRAMMAR.iter().map(|(form, ..)| *form).collect();
    forms.join(", ")
}

/// The grammar in Markdown, for the manual.
pub fn documentation() -> String {
    let mut text = String::from(
        "# Cameras\n\n\
         This page is made from the tables in `daemon/src/camera/source.rs`; a test compares them.\n\n\
         `camera.source` and `camera.fallback` are written so (`camera.fallback` takes a camera \
         only):\n\n| form | what it is | example |\n|---|---|---|\n",
    );
    for (form, what, example) in GRAMMAR {
        text.push_str(&format!("| `{form}` | {what} | `{example}` |\n"));
    }
    text.push_str(
        "\nOptions of `v4l2:`, `rpicam:` and `argus:`:\n\n| option | meaning |\n|---|---|\n",
    );
    for (name, meaning) in OPTIONS {
        text.push_str(&format!("| `{name}` | {meaning} |\n"));
    }
    text.push_str(ADVICE);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        text.parse::<Source>().unwrap_err().to_string()
    }

    #[test]
    fn every_example_of_the_grammar_is_understood_and_written_alike() {
        for (_, _, example) in GRAMMAR {
            let source: Source = example.parse().unwrap();
            let again = source.to_string().replace("***", "secret");
            assert_eq!(again, example);
        }
        let full = "v4l2:/dev/video2?size=1280x720&rate=15&format=mjpeg&exposure=156&focus=auto";
        assert_eq!(full.parse::<Source>().unwrap().to_string(), full);
        assert!("v4l2:usb-046d_0825_4F-video-index0".parse::<Source>().is_ok());
    }

    #[test]
    fn the_manual_is_made_from_the_tables() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cameras.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap();
        assert!(kept == documentation(), "docs/cameras.md is out of date: run with UPDATE=1 set");
    }

    #[test]
    fn a_password_is_never_shown() {
        let source: Source = "rtsp://door:p%40ss:w@192.0.2.7:554/s?x=1".parse().unwrap();
        let shown = format!("{source} {source:?}");
        assert!(!shown.contains("ss:w") && shown.contains("rtsp://door:***@192.0.2.7:554/s?x=1"));
        let Source::Live(LiveSource::Rtsp(address)) = source else { panic!("{shown}") };
        assert_eq!(address.login(), Some(("door", "p@ss:w")));
        assert_eq!(address.url(), "rtsp://192.0.2.7:554/s?x=1");
        assert!(!told("rtsp://me:topsecret@").contains("topsecret"));
        assert!(!told("rtsp://me:topsecret@ host/").contains("topsecret"));
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_would() {
        for (text, part) in [
            ("v4l2:", "/dev/"),
            ("v4l2:/dev/../etc/passwd", "/dev/"),
            ("v4l2:/dev/video0;reboot", "/dev/"),
            ("v4l2:/dev/video0?size=640", "size"),
            ("v4l2:/dev/video0?size=641x480", "even"),
            ("v4l2:/dev/video0?rate=0", "1 to 120"),
            ("v4l2:/dev/video0?rate=10&rate=20", "twice"),
            ("v4l2:/dev/video0?speed=10", "there are: size, rate"),
            ("rpicam:", "number"),
            ("rpicam:0?focus=auto", "v4l2"),
            ("rpicam:0?size=700x480", "multiple of 64"),
            ("rpicam:0?format=nv12", "yuv420 or mjpeg"),
            ("argus:0?format=mjpeg", "cannot be chosen"),
            ("rtsp:camera", "rtsp://HOST/PATH"),
            ("http://", "address"),
            ("ftp:x", "no such kind"),
            ("exec:rm", "no such kind"),
        ] {
            let told = told(text);
            assert!(told.contains(part) && told.contains("dir:PATH"), "{text}: {told}");
        }
        assert!("rpicam:0?size=700x480&format=mjpeg".parse::<Source>().is_ok());
    }
}
