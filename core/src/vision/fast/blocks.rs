//! Channels in blocks of sixteen: `[channels / 16][height][width][16]`.
//!
//! The layout between our operators. A pixel's sixteen channels fill one cache line and one vector
//! register (or two, or four), so vectors run along channels: no picture is too narrow for them
//! and no window or stride misaligns them. The last block's spare lanes hold finite rubbish that
//! nobody reads as a channel.

use super::conv::Channel;
use super::geometry::blocks;
use super::simd::LANES;

/// Floats of `channels` channels of `pixels` pixels each.
pub fn len(channels: usize, pixels: usize) -> usize {
    blocks(channels) * pixels * LANES
}

/// Planes `[channels][pixels]` into blocks.
///
/// # Panics
/// If `y` is not [`len`] long.
pub fn from_planes(channels: usize, x: &[f32], y: &mut [f32]) {
    let pixels = x.len() / channels;
    assert_eq!(y.len(), len(channels, pixels));
    for (block, y) in y.chunks_exact_mut(pixels * LANES).enumerate() {
        let first = block * LANES;
        let lanes = (channels - first).min(LANES);
        for (pixel, y) in y.chunks_exact_mut(LANES).enumerate() {
            for (lane, y) in y.iter_mut().enumerate() {
                *y = if lane < lanes { x[(first + lane) * pixels + pixel] } else { 0.0 };
            }
        }
    }
}

/// Blocks into planes `[channels][pixels]`.
///
/// # Panics
/// If `x` is not [`len`] long.
pub fn to_planes(channels: usize, x: &[f32], y: &mut [f32]) {
    let pixels = y.len() / channels;
    assert_eq!(x.len(), len(channels, pixels));
    for (channel, y) in y.chunks_exact_mut(pixels).enumerate() {
        let block = &x[channel / LANES * pixels * LANES..][..pixels * LANES];
        for (y, x) in y.iter_mut().zip(block.chunks_exact(LANES)) {
            *y = x[channel % LANES];
        }
    }
}

/// Blocks whose channel `i` is `channels[i]` of tensors of blocks, all of `pixels` pixels.
///
/// # Panics
/// If `y` is not [`len`] long or a channel does not exist.
pub fn gather(inputs: &[&[f32]], channels: &[Channel], pixels: usize, y: &mut [f32]) {
    assert_eq!(y.len(), len(channels.len(), pixels));
    let plane = |block: &[f32], index: usize| index / LANES * block.len().min(pixels * LANES);
    for (y, wanted) in y.chunks_exact_mut(pixels * LANES).zip(channels.chunks(LANES)) {
        let whole = wanted[0].channel % LANES == 0
            && wanted.iter().enumerate().all(|(lane, c)| {
                c.tensor == wanted[0].tensor && c.channel == wanted[0].channel + lane
            });
        if whole {
            let x = inputs[wanted[0].tensor];
            y.copy_from_slice(&x[plane(x, wanted[0].channel)..][..pixels * LANES]);
            continue;
        }
        let lanes: [&[f32]; LANES] = std::array::from_fn(|lane| match wanted.get(lane) {
            Some(c) => {
                let x = inputs[c.tensor];
                &x[plane(x, c.channel) + c.channel % LANES..][..(pixels - 1) * LANES + 1]
            }
            None => &[],
        });
        let lanes = &lanes[..wanted.len()];
        for (pixel, y) in y.chunks_exact_mut(LANES).enumerate() {
            for (y, x) in y.iter_mut().zip(lanes) {
                *y = x[pixel * LANES];
            }
            y[wanted.len()..].fill(0.0);
        }
    }
}

/// Channels that lie together in a tensor of blocks and stay together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which tensor.
    pub tensor: usize,
    /// Floats before the first channel of the first pixel.
    pub from: usize,
    /// Channels.
    pub len: usize,
}

/// `channels` of tensors of blocks of `pixels` pixels, cut into [`Run`]s.
pub fn runs(channels: &[Channel], pixels: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut end = None;
    for c in channels {
        match runs.last_mut() {
            Some(run) if end == Some(*c) && c.channel % LANES != 0 => run.len += 1,
            _ => {
                let from = c.channel / LANES * pixels * LANES + c.channel % LANES;
                runs.push(Run { tensor: c.tensor, from, len: 1 });
            }
        }
        end = Some(Channel { channel: c.channel + 1, ..*c });
    }
    runs
}

/// Blocks into pixels with their channels together: `[pixels][channels]`, the channels given by
/// `runs`, in order.
///
/// # Panics
/// If a run does not exist or `y` does not end with a pixel.
pub fn to_pixels(inputs: &[&[f32]], runs: &[Run], y: &mut [f32]) {
    let channels = runs.iter().map(|r| r.len).sum();
    for (pixel, mut y) in y.chunks_exact_mut(channels).enumerate() {
        for run in runs {
            let (to, rest) = y.split_at_mut(run.len);
            to.copy_from_slice(&inputs[run.tensor][run.from + pixel * LANES..][..run.len]);
            y = rest;
        }
    }
}
