//! Drawing on pictures: boxes with labels, and heat.
//!
//! The colours are those of Okabe and Ito (*Color Universal Design*, 2008), which people with any
//! kind of colour vision can tell apart.

use image::{Rgb, RgbImage, imageops};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use pawlatch_core::frame::Frame;
use pawlatch_core::sight::Class;
use pawlatch_core::units::Rect;
use pawlatch_core::vision::HeatMap;

/// The colour of `class`, red, green, blue.
pub const fn colour(class: Class) -> [u8; 3] {
    match class {
        Class::Dog => [0x00, 0x72, 0xb2],
        Class::Cat => [0xd5, 0x5e, 0x00],
        Class::Person => [0xcc, 0x79, 0xa7],
        Class::Other => [0xe6, 0x9f, 0x00],
        Class::Nothing => [0x80, 0x80, 0x80],
    }
}

/// Most of the picture that heat may cover, `0..=1`.
const HEAT_OPACITY: f32 = 0.65;

const FONT: (FontWeight, RasterHeight) = (FontWeight::Regular, RasterHeight::Size16);

/// A copy of a frame that is drawn on.
pub struct Overlay {
    picture: RgbImage,
}

impl Overlay {
    /// A copy of `frame`.
    pub fn new(frame: &Frame) -> Self {
        let (width, height) = (frame.width(), frame.height());
        let picture = RgbImage::from_raw(width, height, frame.pixels().to_vec())
            .unwrap_or_else(|| RgbImage::new(width, height));
        Self { picture }
    }

    /// The picture.
    pub fn into_picture(self) -> RgbImage {
        self.picture
    }

    /// Draws the outline of `rect` in the colour of `class` with a light hem, and `label` above
    /// it, or within where there is no room above.
    pub fn boxed(&mut self, rect: Rect, class: Class, label: &str) {
        let (w, h) = self.picture.dimensions();
        let [x0, y0, x1, y1] = rect.to_pixels(w, h).map(|v| v.round() as i64);
        let (x1, y1) = (x1 - 1, y1 - 1);
        let thick = i64::from((w.min(h) / 200).clamp(1, 6));
        self.outline([x0, y0, x1, y1], thick + 1, [255; 3]);
        self.outline([x0, y0, x1, y1], thick, colour(class));
        let scale = self.text_scale();
        let line = 18 * i64::from(scale);
        let y = if y0 >= line { y0 - line } else { y0 };
        self.label(x0, y, label, class);
    }

    /// Writes `label` on a field of the colour of `class`, its top left corner at `(x, y)`,
    /// pushed back into the picture on the right.
    pub fn label(&mut self, x: i64, y: i64, label: &str, class: Class) {
        let scale = self.text_scale();
        let advance = get_raster_width(FONT.0, FONT.1) as i64 * i64::from(scale);
        let width = advance * label.chars().count() as i64 + 4 * i64::from(scale);
        let x = x.min(i64::from(self.picture.width()) - width).max(0);
        let field = colour(class);
        self.fill([x, y, x + width - 1, y + 18 * i64::from(scale) - 1], field, 1.0);
        // Orange and grey are too light for white letters.
        let ink = if matches!(class, Class::Other | Class::Nothing | Class::Person) {
            [0; 3]
        } else {
            [255; 3]
        };
        for (i, letter) in label.chars().enumerate() {
            let at = x + 2 * i64::from(scale) + advance * i as i64;
            self.letter(at, y + i64::from(scale), letter, scale, ink);
        }
    }

    /// Writes `text` as line number `row` from the top left corner.
    pub fn line(&mut self, row: usize, text: &str, class: Class) {
        let height = 18 * i64::from(self.text_scale());
        self.label(0, row as i64 * height, text, class);
    }

    /// Lays the heat of `class` over the picture: nothing where it is 0.
    pub fn heat(&mut self, heat: &HeatMap, class: Class) {
        let (w, h) = self.picture.dimensions();
        let [x0, y0, x1, y1] = heat.region.to_pixels(w, h).map(|v| v.round() as u32);
        let Some(alpha) = enlarged(heat, class, (x1 - x0).max(1), (y1 - y0).max(1)) else { return };
        let tint = colour(class);
        for (x, y, value) in alpha.enumerate_pixels() {
            if let Some(pixel) = self.picture.get_pixel_mut_checked(x0 + x, y0 + y) {
                blend(pixel, tint, HEAT_OPACITY * value.0[0].clamp(0.0, 1.0));
            }
        }
    }

    /// Whole multiples of the 16-pixel font, so that labels can be read on large pictures too.
    fn text_scale(&self) -> u32 {
        (self.picture.width().min(self.picture.height()) / 480).clamp(1, 6)
    }

    fn outline(&mut self, [x0, y0, x1, y1]: [i64; 4], thick: i64, tint: [u8; 3]) {
        let t = thick - 1;
        self.fill([x0, y0, x1, y0 + t], tint, 1.0);
        self.fill([x0, y1 - t, x1, y1], tint, 1.0);
        self.fill([x0, y0, x0 + t, y1], tint, 1.0);
        self.fill([x1 - t, y0, x1, y1], tint, 1.0);
    }

    /// Fills the part within the picture of a rectangle, its edges included.
    fn fill(&mut self, [x0, y0, x1, y1]: [i64; 4], tint: [u8; 3], alpha: f32) {
        let (w, h) = (i64::from(self.picture.width()), i64::from(self.picture.height()));
        for y in y0.max(0)..=y1.min(h - 1) {
            for x in x0.max(0)..=x1.min(w - 1) {
                blend(self.picture.get_pixel_mut(x as u32, y as u32), tint, alpha);
            }
        }
    }

    fn letter(&mut self, x: i64, y: i64, letter: char, scale: u32, ink: [u8; 3]) {
        let Some(raster) =
            get_raster(letter, FONT.0, FONT.1).or_else(|| get_raster('?', FONT.0, FONT.1))
        else {
            return;
        };
        let s = i64::from(scale);
        for (row, line) in raster.rows().enumerate() {
            for (column, cover) in line.iter().enumerate() {
                let (px, py) = (x + column as i64 * s, y + row as i64 * s);
                self.fill([px, py, px + s - 1, py + s - 1], ink, f32::from(*cover) / 255.0);
            }
        }
    }
}

/// The heat of `class`, smoothly enlarged to `width` by `height` pixels, `0..=1`.
pub fn enlarged(
    heat: &HeatMap,
    class: Class,
    width: u32,
    height: u32,
) -> Option<image::ImageBuffer<image::Luma<f32>, Vec<f32>>> {
    let cells = image::ImageBuffer::<image::Luma<f32>, _>::from_raw(
        heat.width as u32,
        heat.height as u32,
        heat.of(class).to_vec(),
    )?;
    Some(imageops::resize(&cells, width, height, imageops::FilterType::CatmullRom))
}

fn blend(pixel: &mut Rgb<u8>, tint: [u8; 3], alpha: f32) {
    for (value, tint) in pixel.0.iter_mut().zip(tint) {
        *value = (f32::from(*value) * (1.0 - alpha) + f32::from(tint) * alpha).round() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pawlatch_core::units::Uptime;

    fn plain(width: u32, height: u32) -> Frame {
        let pixels = vec![90; (width * height * 3) as usize];
        Frame::from_rgb(pixels, width, height, Uptime::ZERO).unwrap()
    }

    #[test]
    fn a_box_is_drawn_where_it_is_and_nowhere_else() {
        let mut overlay = Overlay::new(&plain(200, 100));
        overlay.boxed(Rect::try_from([0.25, 0.5, 0.75, 1.0]).unwrap(), Class::Dog, "dog");
        let picture = overlay.into_picture();
        assert_eq!(picture.get_pixel(50, 75).0, colour(Class::Dog));
        assert_eq!(picture.get_pixel(149, 75).0, colour(Class::Dog));
        assert_eq!(picture.get_pixel(100, 75).0, [90; 3]);
        assert_eq!(picture.get_pixel(160, 75).0, [90; 3]);
    }

    #[test]
    fn labels_and_boxes_fit_any_picture() {
        for (w, h) in [(1, 1), (3, 700), (900, 2)] {
            let mut overlay = Overlay::new(&plain(w, h));
            overlay.boxed(Rect::WHOLE, Class::Other, "ünknown animal");
            assert_eq!(overlay.into_picture().dimensions(), (w, h));
        }
    }
}
