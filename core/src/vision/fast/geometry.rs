//! The shape of a convolution or pooling over one picture.

use super::simd::LANES;

/// Where a window slides, in pixels; pairs are `[vertical, horizontal]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Groups of channels that do not see each other; divides `cin` and `cout`.
    pub groups: usize,
    /// Size of the input.
    pub input: [usize; 2],
    /// Size of the output.
    pub output: [usize; 2],
    /// Size of the window in taps.
    pub kernel: [usize; 2],
    /// Step of the window.
    pub stride: [usize; 2],
    /// Distance between taps.
    pub dilation: [usize; 2],
    /// Padding above and to the left; below and to the right it follows from `output`.
    pub pad: [usize; 2],
}

impl Geometry {
    /// Whether each channel is convolved with its own single filter.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.cin && self.cin == self.cout && self.groups > 1
    }

    /// Whether each output pixel sees just the input pixel at its place.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.input == self.output
    }

    /// Taps of the window.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Multiply-adds of the convolution.
    pub fn macs(&self) -> usize {
        self.cout * self.cin / self.groups * self.taps() * self.output_pixels()
    }

    /// Pixels of the input.
    pub fn input_pixels(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Pixels of the output.
    pub fn output_pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Floats of the output in [blocks](super::blocks).
    pub fn output_len(&self) -> usize {
        blocks(self.cout) * self.output_pixels() * LANES
    }

    /// The taps `from..to` along `axis` (0 vertical, 1 horizontal) that fall inside the picture
    /// for output position `at`, and the input position of tap 0 (which may be outside).
    pub fn visible(&self, axis: usize, at: usize) -> (std::ops::Range<usize>, isize) {
        let (step, size) = (self.dilation[axis] as isize, self.input[axis] as isize);
        let origin = (at * self.stride[axis]) as isize - self.pad[axis] as isize;
        let from = (-origin).max(0).div_ceil_by(step);
        let to = (size - origin).max(0).div_ceil_by(step).min(self.kernel[axis]);
        (from.min(to)..to, origin)
    }
}

trait DivCeil {
    fn div_ceil_by(self, step: isize) -> usize;
}

impl DivCeil for isize {
    /// Rounded up; both must not be negative.
    fn div_ceil_by(self, step: isize) -> usize {
        ((self + step - 1) / step) as usize
    }
}

/// Blocks of [`LANES`] channels that hold `channels`.
pub fn blocks(channels: usize) -> usize {
    channels.div_ceil(LANES)
}
