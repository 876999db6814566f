//! Cameras of Linux (Video4Linux). nokhwa reads those it understands. It passes over formats with
//! fractional frame intervals and most of those whose sizes come in steps; for these V4L2 itself
//! is asked, through the same binding that nokhwa uses.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nokhwa::Camera;
use nokhwa::utils::{
    CameraFormat, CameraIndex, FrameFormat, RequestedFormat, RequestedFormatType, Resolution,
};
use v4l::buffer::Type;
use v4l::control::{Control, Value};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::io::traits::CaptureStream as _;
use v4l::prelude::{Device, MmapStream};
use v4l::video::Capture as _;
use v4l::video::capture::Parameters;
use v4l::{FourCC, Fraction};

use super::CameraError;
use super::live::Reader;
use super::shot::{Layout, Shot};
use super::source::{Format, LiveSource, Setting, Wish};
use crate::clock::Clock;

/// Where udev keeps names that outlive replugging.
const BY_ID: &str = "/dev/v4l/by-id";
/// How long a driver may take to give a picture.
const WITHIN: Duration = Duration::from_secs(3);
/// Buffers in the driver's queue.
const BUFFERS: u32 = 4;
/// Size and least rate if none are wished.
const USUAL: (u32, u32, u32) = (640, 480, 10);
/// A picture older than this when it is handed over has a clock we do not understand.
const OLDEST: Duration = Duration::from_secs(1);

const CID_EXPOSURE_AUTO: u32 = 0x009a_0901;
const CID_EXPOSURE_ABSOLUTE: u32 = 0x009a_0902;
const CID_FOCUS_ABSOLUTE: u32 = 0x009a_090a;
const CID_FOCUS_AUTO: u32 = 0x009a_090c;
/// `V4L2_EXPOSURE_MANUAL` and `V4L2_EXPOSURE_APERTURE_PRIORITY`: webcams know no full automatic.
const EXPOSURE_MANUAL: i64 = 1;
const EXPOSURE_BY_APERTURE: i64 = 3;

/// Formats we can decode, the cheapest to decode first.
const FORMATS: [(&[u8; 4], Format, Layout); 6] = [
    (b"YUYV", Format::Yuyv, Layout::Yuyv),
    (b"NV12", Format::Nv12, Layout::Nv12),
    (b"YU12", Format::Yuv420, Layout::I420),
    (b"MJPG", Format::Mjpeg, Layout::Jpeg),
    (b"JPEG", Format::Mjpeg, Layout::Jpeg),
    (b"GREY", Format::Grey, Layout::Grey),
];

/// What a device offers, and what was chosen of it.
#[derive(Debug, Clone, PartialEq)]
struct Offer {
    fourcc: [u8; 4],
    width: u32,
    height: u32,
    /// Seconds from frame to frame, numerator and denominator; `None`: the driver does not say.
    interval: Option<(u32, u32)>,
    /// Whether this is one size of many between two.
    stepwise: bool,
}

impl Offer {
    fn rate(&self) -> f32 {
        self.interval.map_or(0.0, |(n, d)| d as f32 / n.max(1) as f32)
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fourcc = String::from_utf8_lossy(&self.fourcc);
        write!(f, "{fourcc} {}x{}", self.width, self.height)?;
        if self.interval.is_some() {
            write!(f, " at {:.1}", self.rate())?;
        }
        Ok(())
    }
}

/// A camera that is being read.
pub(super) struct V4l2Reader {
    camera: String,
    layout: Layout,
    width: u32,
    height: u32,
    stride: usize,
    stream: Stream,
    clock: Clock,
}

enum Stream {
    Nokhwa(Box<Camera>),
    /// The stream first: it must end before its device is closed.
    Plain(MmapStream<'static>, #[expect(dead_code, reason = "kept open")] Device),
}

impl V4l2Reader {
    pub(super) fn open(
        source: &LiveSource,
        device: &str,
        wish: &Wish,
        clock: Clock,
    ) -> Result<Self, CameraError> {
        let broken = |problem: String| CameraError::Camera { camera: source.to_string(), problem };
        let path = find(device).map_err(broken)?;
        let plain = Device::with_path(&path).map_err(|e| broken(refused(&path, &e)))?;
        let offers = offers(&plain).map_err(|e| broken(format!("it is no camera: {e}")))?;
        let offer = choose(&offers, wish).map_err(broken)?;
        set_controls(&plain, wish).map_err(broken)?;
        let layout = layout_of(offer.fourcc).unwrap_or(Layout::Jpeg);
        let (camera, width, height) = (source.to_string(), offer.width, offer.height);
        // One after the other: some drivers let a device be opened only once.
        drop(plain);
        match through_nokhwa(&path, &offer) {
            Ok(stream) => {
                let stride = width as usize * bytes_a_pixel(layout);
                let stream = Stream::Nokhwa(Box::new(stream));
                Ok(Self { camera, layout, width, height, stride, stream, clock })
            }
            Err(why) => {
                tracing::debug!(%camera, why, "nokhwa refuses it; V4L2 is asked itself");
                Self::plain(&path, &offer, layout, camera, clock).map_err(broken)
            }
        }
    }

    fn plain(
        path: &Path,
        offer: &Offer,
        layout: Layout,
        camera: String,
        clock: Clock,
    ) -> Result<Self, String> {
        let device = Device::with_path(path).map_err(|e| refused(path, &e))?;
        let wanted = v4l::Format::new(offer.width, offer.height, FourCC::new(&offer.fourcc));
        let got = device.set_format(&wanted).map_err(|e| refused(path, &e))?;
        if (got.width, got.height, got.fourcc) != (wanted.width, wanted.height, wanted.fourcc) {
            return Err(format!("it refuses {offer} and gives {}x{}", got.width, got.height));
        }
        if let Some((n, d)) = offer.interval {
            let params = Parameters::new(Fraction::new(n, d));
            let got = device.set_params(&params).map_err(|e| refused(path, &e))?.interval;
            let (wished, given) = (offer.rate(), got.denominator as f32 / got.numerator as f32);
            if (given - wished).abs() > 0.05 * wished {
                return Err(format!("it refuses the rate {wished} and gives {given}"));
            }
        }
        let mut stream = MmapStream::with_buffers(&device, Type::VideoCapture, BUFFERS)
            .map_err(|e| refused(path, &e))?;
        stream.set_timeout(WITHIN);
        let stride = match got.stride as usize {
            0 => offer.width as usize * bytes_a_pixel(layout),
            stride => stride,
        };
        let (width, height) = (offer.width, offer.height);
        let stream = Stream::Plain(stream, device);
        Ok(Self { camera, layout, width, height, stride, stream, clock })
    }
}

impl Reader for V4l2Reader {
    fn read(&mut self) -> Result<Shot, CameraError> {
        let broken = |camera: &str, problem: &dyn fmt::Display| CameraError::Camera {
            camera: camera.to_owned(),
            problem: format!("{problem}; is its cable in place?"),
        };
        let (bytes, age) = match &mut self.stream {
            Stream::Nokhwa(camera) => {
                let buffer = camera.frame().map_err(|e| broken(&self.camera, &e))?;
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let age = buffer.capture_timestamp().and_then(|at| now.ok()?.checked_sub(at));
                (buffer.buffer().to_vec(), age)
            }
            Stream::Plain(stream, _) => {
                let (bytes, meta) = stream.next().map_err(|e| broken(&self.camera, &e))?;
                let used = (meta.bytesused as usize).min(bytes.len());
                (bytes[..used].to_vec(), None)
            }
        };
        let at = self.clock.now() - age.filter(|age| *age < OLDEST).unwrap_or_default();
        let Self { layout, width, height, stride, .. } = *self;
        Ok(Shot { layout, width, height, stride, bytes, at })
    }
}

/// The device's path: given, or by a name or part of one in `/dev/v4l/by-id`.
fn find(device: &str) -> Result<PathBuf, String> {
    let path = if device.starts_with("/dev/") {
        PathBuf::from(device)
    } else {
        Path::new(BY_ID).join(device)
    };
    path.canonicalize().map_err(|_| {
        let cameras: Vec<String> = v4l::context::enum_devices()
            .iter()
            .map(|node| {
                let name = node.name().unwrap_or_default();
                format!("{} ({})", node.path().display(), name.trim())
            })
            .collect();
        let there = if cameras.is_empty() { "none".to_owned() } else { cameras.join(", ") };
        format!("{} is not there; cameras that are: {there}", path.display())
    })
}

fn refused(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{path} may not be opened: join the group video, or run as the service does")
        }
        io::ErrorKind::ResourceBusy => format!("{path} is used by another program: end that"),
        _ => format!("{path}: {error}"),
    }
}

fn layout_of(fourcc: [u8; 4]) -> Option<Layout> {
    FORMATS.iter().find(|(code, ..)| **code == fourcc).map(|(_, _, layout)| *layout)
}

/// Bytes a pixel takes in the first plane.
const fn bytes_a_pixel(layout: Layout) -> usize {
    match layout {
        Layout::Yuyv => 2,
        Layout::Rgb | Layout::Bgr => 3,
        Layout::Jpeg | Layout::Nv12 | Layout::I420 | Layout::Grey => 1,
    }
}

/// Everything the device offers that we can decode.
fn offers(device: &Device) -> io::Result<Vec<Offer>> {
    let mut offers = Vec::new();
    for format in device.enum_formats()? {
        let fourcc = format.fourcc.repr;
        if layout_of(fourcc).is_none() {
            continue;
        }
        let mut sizes = Vec::new();
        for size in device.enum_framesizes(format.fourcc).unwrap_or_default() {
            match size.size {
                FrameSizeEnum::Discrete(d) => sizes.push((d.width, d.height, false)),
                FrameSizeEnum::Stepwise(s) => sizes.extend(steps(&s)),
            }
        }
        if sizes.is_empty() {
            // A driver that cannot list them still has one.
            let now = device.format()?;
            sizes.push((now.width, now.height, true));
        }
        for (width, height, stepwise) in sizes {
            let offer = |interval| Offer { fourcc, width, height, interval, stepwise };
            let intervals = device.enum_frameintervals(format.fourcc, width, height);
            let intervals: Vec<_> = intervals.unwrap_or_default();
            if intervals.is_empty() {
                offers.push(offer(None));
            }
            for interval in intervals {
                match interval.interval {
                    FrameIntervalEnum::Discrete(f) => {
                        offers.push(offer(Some((f.numerator, f.denominator))));
                    }
                    FrameIntervalEnum::Stepwise(s) => {
                        let seconds = |f: &Fraction| f.numerator as f32 / f.denominator as f32;
                        let fits = |rate: &u32| {
                            let each = 1.0 / *rate as f32;
                            each >= seconds(&s.min) * 0.999 && each <= seconds(&s.max) * 1.001
                        };
                        let rates = (1..=120_u32).filter(fits);
                        offers.extend(rates.map(|rate| offer(Some((1, rate)))));
                    }
                }
            }
        }
    }
    Ok(offers)
}

/// The usual sizes that a range of them contains, and its ends.
fn steps(range: &v4l::framesize::Stepwise) -> Vec<(u32, u32, bool)> {
    let usual = [(320, 240), (640, 360), (640, 480), (800, 600), (1_280, 720), (1_920, 1_080)];
    let fits = |(w, h): &(u32, u32)| {
        (range.min_width..=range.max_width).contains(w)
            && (range.min_height..=range.max_height).contains(h)
            && (w - range.min_width).is_multiple_of(range.step_width.max(1))
            && (h - range.min_height).is_multiple_of(range.step_height.max(1))
    };
    let ends = [(range.min_width, range.min_height), (range.max_width, range.max_height)];
    usual.into_iter().filter(fits).chain(ends).map(|(w, h)| (w, h, true)).collect()
}

/// The offer that comes nearest to the wish. What is wished is a condition; what is not is taken
/// as it usually is: 640 by 480, at least ten pictures a second, cheap to decode.
fn choose(offers: &[Offer], wish: &Wish) -> Result<Offer, String> {
    let none = |what: String, kept: &[&Offer]| {
        let mut lines: Vec<String> = kept.iter().map(|offer| offer.to_string()).collect();
        lines.dedup();
        lines.truncate(12);
        let there = if lines.is_empty() { "nothing usable".to_owned() } else { lines.join(", ") };
        format!("it has no {what}; it offers {there}")
    };
    let mut left: Vec<&Offer> = offers.iter().collect();
    if let Some(format) = wish.format {
        let is = |offer: &&&Offer| {
            FORMATS.iter().any(|(code, name, _)| **code == offer.fourcc && *name == format)
        };
        let kept: Vec<&Offer> = left.iter().filter(is).copied().collect();
        if kept.is_empty() {
            return Err(none(format!("format {}", format.name()), &left));
        }
        left = kept;
    }
    if let Some((width, height)) = wish.size {
        let mut kept: Vec<&Offer> =
            left.iter().filter(|o| (o.width, o.height) == (width, height)).copied().collect();
        // Sizes in steps are only listed in part; the driver itself will say.
        let stepped: Vec<Offer> = left
            .iter()
            .filter(|o| o.stepwise)
            .map(|o| Offer { width, height, ..(*o).clone() })
            .collect();
        if kept.is_empty() && !stepped.is_empty() {
            let wish = Wish { size: None, ..wish.clone() };
            return choose(&stepped, &wish);
        }
        if kept.is_empty() {
            return Err(none(format!("size {width}x{height}"), &left));
        }
        left = std::mem::take(&mut kept);
    }
    if let Some(rate) = wish.rate {
        let is = |o: &&&Offer| o.interval.is_none() || (o.rate() - rate as f32).abs() < 0.51;
        let kept: Vec<&Offer> = left.iter().filter(is).copied().collect();
        if kept.is_empty() {
            return Err(none(format!("rate {rate}"), &left));
        }
        left = kept;
    }
    let (width, height, rate) = USUAL;
    let cost = |offer: &Offer| {
        let pixels = f64::from(offer.width) * f64::from(offer.height);
        let size = (pixels / f64::from(width * height)).ln().abs();
        let given = f64::from(offer.rate());
        let slow = if given > 0.0 { (f64::from(rate) / given).max(1.0).ln() * 4.0 } else { 0.0 };
        let fast = (given / f64::from(rate)).max(1.0).ln() * 0.2;
        let order = FORMATS.iter().position(|(code, ..)| **code == offer.fourcc).unwrap_or(9);
        size * 4.0 + slow + fast + order as f64 * 0.1
    };
    let best = left.into_iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
    best.cloned().ok_or_else(|| none("picture".to_owned(), &[]))
}

fn set_controls(device: &Device, wish: &Wish) -> Result<(), String> {
    let set = |name: &str, id: u32, value: Value| {
        device.set_control(Control { id, value }).map_err(|e| {
            format!("its {name} cannot be set ({e}): leave {name} out of camera.source")
        })
    };
    match wish.exposure {
        None => {}
        Some(Setting::Auto) => {
            set("exposure", CID_EXPOSURE_AUTO, Value::Integer(EXPOSURE_BY_APERTURE))?;
        }
        Some(Setting::Value(value)) => {
            set("exposure", CID_EXPOSURE_AUTO, Value::Integer(EXPOSURE_MANUAL))?;
            set("exposure", CID_EXPOSURE_ABSOLUTE, Value::Integer(value.into()))?;
        }
    }
    match wish.focus {
        None => Ok(()),
        Some(Setting::Auto) => set("focus", CID_FOCUS_AUTO, Value::Boolean(true)),
        Some(Setting::Value(value)) => {
            // A camera without autofocus has nothing to switch off.
            let _ = set("focus", CID_FOCUS_AUTO, Value::Boolean(false));
            set("focus", CID_FOCUS_ABSOLUTE, Value::Integer(value.into()))
        }
    }
}

/// The stream as nokhwa opens it; why it does not, otherwise.
fn through_nokhwa(path: &Path, offer: &Offer) -> Result<Camera, String> {
    let format = match &offer.fourcc {
        b"YUYV" => FrameFormat::YUYV,
        b"NV12" => FrameFormat::NV12,
        b"MJPG" => FrameFormat::MJPEG,
        other => return Err(format!("it knows no {}", String::from_utf8_lossy(other))),
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let number = name.as_deref().and_then(|name| name.strip_prefix("video")?.parse().ok());
    let number: u32 = number.ok_or("it opens /dev/videoN only")?;
    let rate = match offer.interval {
        Some((1, rate)) => rate,
        _ => return Err("it knows whole rates only".to_owned()),
    };
    let size = Resolution::new(offer.width, offer.height);
    let exact = RequestedFormatType::Exact(CameraFormat::new(size, format, rate));
    let wanted = [format];
    let request = RequestedFormat::with_formats(exact, &wanted);
    let mut camera = Camera::new(CameraIndex::Index(number), request).map_err(|e| e.to_string())?;
    camera.open_stream().map_err(|e| e.to_string())?;
    Ok(camera)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(fourcc: &[u8; 4], size: (u32, u32), interval: (u32, u32)) -> Offer {
        let (width, height) = size;
        Offer { fourcc: *fourcc, width, height, interval: Some(interval), stepwise: false }
    }

    fn webcam() -> Vec<Offer> {
        vec![
            offer(b"YUYV", (640, 480), (1, 30)),
            offer(b"YUYV", (640, 480), (1, 15)),
            offer(b"YUYV", (1_280, 720), (1, 5)),
            offer(b"MJPG", (1_280, 720), (1, 30)),
            offer(b"MJPG", (640, 480), (1001, 30_000)),
        ]
    }

    #[test]
    fn what_is_not_wished_is_taken_as_usual_and_what_is_wished_is_a_condition() {
        let wish = Wish::default();
        assert_eq!(choose(&webcam(), &wish).unwrap(), webcam()[1]);
        let large = Wish { size: Some((1_280, 720)), ..wish.clone() };
        assert_eq!(choose(&webcam(), &large).unwrap(), webcam()[3], "5 a second is too slow");
        let mjpeg = Wish { format: Some(Format::Mjpeg), rate: Some(30), ..wish.clone() };
        assert_eq!(choose(&webcam(), &mjpeg).unwrap(), webcam()[4]);
        for (wish, part) in [
            (Wish { rate: Some(60), ..wish.clone() }, "no rate 60"),
            (Wish { size: Some((1_920, 1_080)), ..wish.clone() }, "no size 1920x1080"),
            (Wish { format: Some(Format::Nv12), ..wish.clone() }, "no format nv12"),
        ] {
            let told = choose(&webcam(), &wish).unwrap_err();
            assert!(told.contains(part) && told.contains("YUYV 640x480 at 30"), "{told}");
        }
        assert!(choose(&[], &wish).unwrap_err().contains("nothing usable"));
    }

    #[test]
    fn sizes_in_steps_are_taken_at_their_word() {
        let stepped = vec![Offer { stepwise: true, ..offer(b"YUYV", (320, 180), (1, 25)) }];
        let wish = Wish { size: Some((960, 540)), ..Wish::default() };
        let chosen = choose(&stepped, &wish).unwrap();
        assert_eq!((chosen.width, chosen.height), (960, 540));
        let range = v4l::framesize::Stepwise {
            min_width: 320,
            max_width: 1_920,
            step_width: 2,
            min_height: 180,
            max_height: 1_080,
            step_height: 2,
        };
        assert!(steps(&range).contains(&(640, 480, true)));
    }
}
