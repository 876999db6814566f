//! The kernels of bytes of every instruction set of this CPU against exact loops.

use super::byte_depthwise::ByteDepthwise;
use super::bytes::{Coding, ToBytes};
use super::dot::{Dot, Pointwise, coded};
use super::geometry::{Geometry, blocks};
use super::kernel_tests::{CASES, Dice, blocked};
use super::parallel;
use super::post::Post;
use super::simd::{Isa, LANES};

fn dots() -> Vec<Dot> {
    let dots: Vec<Dot> = Isa::available().into_iter().filter_map(Dot::of).collect();
    let names: Vec<&str> = dots.iter().map(|dot| dot.isa().name()).collect();
    eprintln!("dot products of bytes: {}", names.join(", "));
    dots
}

/// Fewer for plain Rust, which is slow.
fn cases(dot: Dot) -> usize {
    if dot.isa() == Isa::PORTABLE { (CASES / 10).max(12) } else { CASES }
}

/// Bytes in blocks, spare lanes included: whatever they hold must not matter.
fn bytes(dice: &mut Dice, channels: usize, pixels: usize) -> Vec<u8> {
    // Both ends more often than not: there sums are largest.
    let byte = |dice: &mut Dice| match dice.below(4) {
        0 => 0,
        1 => 255,
        _ => dice.below(256) as u8,
    };
    (0..blocks(channels) * pixels * LANES).map(|_| byte(dice)).collect()
}

fn byte_at(x: &[u8], pixels: usize, channel: usize, pixel: usize) -> u8 {
    x[(channel / LANES * pixels + pixel) * LANES + channel % LANES]
}

/// A clamp that this coding can hold, or none.
fn coding(dice: &mut Dice) -> Coding {
    match dice.below(3) {
        0 => Coding::of(0.0, 6.0),
        1 => Coding::of(-1.0 - dice.below(50) as f32 / 7.0, 1.0 + dice.below(50) as f32 / 9.0),
        _ => Coding::of(0.0, 0.5 + dice.below(1000) as f32 / 3.0),
    }
    .unwrap()
}

/// Weights that differ by orders of magnitude, some rows all of one sign, some zero.
fn weights(dice: &mut Dice, rows: usize, length: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for _ in 0..rows {
        let scale = [1.0, 1e-3, 40.0, 0.0][dice.below(9).saturating_sub(5)];
        let one_sign = dice.below(4) == 0;
        let row = dice.floats(length);
        all.extend(row.iter().map(|w| scale * if one_sign { w.abs() } else { *w }));
    }
    all
}

struct Case {
    geometry: Geometry,
    from: Coding,
    to: Option<Coding>,
    posts: Vec<Post>,
    x: Vec<u8>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    other: Vec<f32>,
}

impl Case {
    fn pointwise(dice: &mut Dice) -> Self {
        let (height, width) = (1 + dice.below(12), 1 + dice.below(30));
        let (cin, cout) = (1 + dice.below(70), 1 + dice.below(50));
        Self::of(dice, cin, cout, [height, width])
    }

    fn of(dice: &mut Dice, cin: usize, cout: usize, size: [usize; 2]) -> Self {
        let geometry = Geometry {
            cin,
            cout,
            groups: 1,
            input: size,
            output: size,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pad: [0, 0],
        };
        let to = if dice.below(2) == 0 { Some(coding(dice)) } else { None };
        let posts = match (dice.below(3), to) {
            (0, _) => vec![],
            (1, None) => vec![Post::Clamp(-1.0, 2.5), Post::Residual],
            _ => vec![Post::Clamp(0.0, 6.0)],
        };
        Self {
            from: coding(dice),
            to,
            posts,
            x: bytes(dice, cin, geometry.input_pixels()),
            weights: weights(dice, cout, cin),
            bias: dice.floats(cout),
            other: blocked(cout, &dice.floats(cout * geometry.output_pixels())),
            geometry,
        }
    }

    fn op(&self, dot: Dot) -> Pointwise {
        let (g, posts) = (self.geometry.clone(), self.posts.clone());
        Pointwise::new(dot, g, self.from, self.to, &self.weights, &self.bias, posts)
    }

    /// What the kernel gives: bytes, or the bits of floats.
    fn given(&self, dot: Dot) -> Vec<u32> {
        let op = self.op(dot);
        if self.to.is_some() {
            let mut y = vec![77; self.geometry.output_len()];
            op.run_to_bytes(dot, &self.x, &mut y);
            return y.into_iter().map(u32::from).collect();
        }
        let mut y = vec![f32::NAN; self.geometry.output_len()];
        let other = op.has_operand().then_some(&self.other[..]);
        op.run(dot, &self.x, other, &mut y);
        y.into_iter().map(f32::to_bits).collect()
    }

    /// The same by definition, of the real channels: one exact sum, one rounding to a float, one
    /// multiply-add.
    fn expected(&self, given: &[u32]) -> usize {
        let (g, pixels) = (&self.geometry, self.geometry.output_pixels());
        let (gain, shift) = self.to.map_or((1.0, 0.0), |to| (to.step.recip(), f32::from(to.zero)));
        let mut largest = 0;
        for m in 0..g.cout {
            let (step, row) = coded(&self.weights[m * g.cin..][..g.cin]);
            for p in 0..pixels {
                let sum: i64 = (0..g.cin)
                    .map(|c| i64::from(byte_at(&self.x, pixels, c, p)) - i64::from(self.from.zero))
                    .zip(&row)
                    .map(|(x, w)| x * i64::from(*w))
                    .sum();
                largest = largest.max(sum.unsigned_abs() as usize);
                let at = (m / LANES * pixels + p) * LANES + m % LANES;
                let (scale, bias) = (step * self.from.step * gain, self.bias[m] * gain + shift);
                let mut y = (sum as i32 as f32).mul_add(scale, bias);
                for post in &self.posts {
                    y = match *post {
                        Post::Clamp(low, high) => y.clamp(low * gain + shift, high * gain + shift),
                        _ => y + self.other[at],
                    };
                }
                let y = match self.to {
                    Some(_) => u32::from(y.clamp(0.0, 255.0).round_ties_even() as u8),
                    None => y.to_bits(),
                };
                let name = format!("{:?} {:?} {:?}", self.geometry, self.to, self.posts);
                assert_eq!(y, given[at], "channel {m}, pixel {p} of {name}");
            }
        }
        largest
    }
}

#[test]
fn pointwise_convolutions_of_bytes_equal_the_exact_loop() {
    for dot in dots() {
        let mut dice = Dice(11);
        let mut largest = 0;
        for _ in 0..cases(dot) {
            let case = Case::pointwise(&mut dice);
            largest = largest.max(case.expected(&case.given(dot)));
        }
        assert!(cfg!(miri) || largest > 1 << 16, "sums were too small to overflow: {largest}");
    }
}

/// Deep ones, as in the last layers of a network: sums beyond what a float holds exactly.
#[test]
fn deep_sums_of_one_sign_are_exact() {
    let depth = if cfg!(miri) { 64 } else { 6000 };
    for dot in dots() {
        let mut dice = Dice(12);
        let mut case = Case::of(&mut dice, depth, 20, [3, 5]);
        (case.from, case.to) = (Coding::of(0.0, 6.0).unwrap(), None);
        case.posts.clear();
        case.x.fill(255);
        case.weights.iter_mut().for_each(|w| *w = w.abs() + 0.1);
        let largest = case.expected(&case.given(dot));
        assert!(cfg!(miri) || largest > 1 << 24, "{largest}");
    }
}

/// AVX2 adds four products in sixteen bits.
#[test]
fn coded_weights_never_overflow_sixteen_bits() {
    let mut dice = Dice(13);
    for _ in 0..CASES {
        let length = 1 + dice.below(64);
        let row = weights(&mut dice, 1, length);
        let (step, codes) = coded(&row);
        for (w, code) in row.iter().zip(&codes) {
            assert!((w - step * f32::from(*code)).abs() <= step * 0.5001, "{w} is not {code}");
        }
        for chunk in codes.chunks(8) {
            for pair in 0..2 {
                let four = chunk.iter().enumerate().filter(|(i, _)| i % 4 / 2 == pair);
                let (mut above, mut below) = (0, 0);
                for (_, w) in four {
                    above += i32::from(*w).max(0);
                    below += i32::from(*w).min(0);
                }
                assert!(255 * above <= 32_767 && 255 * below >= -32_768, "{chunk:?}");
            }
        }
        let largest = codes.iter().map(|c| c.unsigned_abs()).max().unwrap();
        let nothing = row.iter().all(|w| *w == 0.0);
        assert!(nothing || largest >= 31, "a row uses its bits: {codes:?}");
    }
}

#[test]
fn depthwise_convolutions_of_bytes_equal_the_loop() {
    for isa in Isa::available() {
        let Some(dot) = Dot::of(isa) else { continue };
        let mut dice = Dice(14);
        let mut done = 0;
        while done < cases(dot) / 3 {
            let g = dice.geometry();
            if !g.is_depthwise() {
                continue;
            }
            done += 1;
            let (from, to) = (Coding::of(0.0, 6.0).unwrap(), coding(&mut dice));
            let x = bytes(&mut dice, g.cin, g.input_pixels());
            let (weights, bias) = (dice.floats(g.cin * g.taps()), dice.floats(g.cin));
            let clamp = [(0.0, 6.0), (f32::NEG_INFINITY, f32::INFINITY)][dice.below(2)];
            let op = ByteDepthwise::new(g.clone(), from, to, &weights, &bias, clamp);
            let mut y = vec![77; g.output_len()];
            op.run(isa, &x, &mut y);
            let code = |v: f32| v * to.step.recip() + f32::from(to.zero);
            for channel in 0..g.cin {
                for (p, (oy, ox)) in
                    (0..g.output_pixels()).map(|p| (p, (p / g.output[1], p % g.output[1])))
                {
                    let mut sum = code(bias[channel]);
                    let ((ky, top), (kx, left)) = (g.visible(0, oy), g.visible(1, ox));
                    for (ky, kx) in ky.flat_map(|ky| kx.clone().map(move |kx| (ky, kx))) {
                        let iy = (top + (ky * g.dilation[0]) as isize) as usize;
                        let ix = (left + (kx * g.dilation[1]) as isize) as usize;
                        let pixel = iy * g.input[1] + ix;
                        let v = f32::from(byte_at(&x, g.input_pixels(), channel, pixel));
                        let w = weights[channel * g.taps() + ky * g.kernel[1] + kx];
                        sum = v.mul_add(w * from.step * to.step.recip(), sum);
                    }
                    let sum = sum.clamp(code(clamp.0).max(0.0), code(clamp.1).min(255.0));
                    let expected = sum.round_ties_even() as u8;
                    let given = byte_at(&y, g.output_pixels(), channel, p);
                    assert_eq!(given, expected, "{}: {channel}, {p} of {g:?}", isa.name());
                }
            }
        }
    }
}

#[test]
fn floats_become_the_nearest_bytes_and_padding_is_exact() {
    for isa in Isa::available() {
        let mut dice = Dice(15);
        for _ in 0..CASES / 10 + 2 {
            let coding = coding(&mut dice);
            let x: Vec<f32> = dice.floats(32 * LANES).iter().map(|v| v * 9.0).collect();
            let mut y = vec![7; x.len()];
            ToBytes(coding).run(isa, &x, &mut y);
            for (x, y) in x.iter().zip(&y) {
                let zero = f32::from(coding.zero);
                let expected = x.mul_add(coding.step.recip(), zero).clamp(0.0, 255.0);
                assert_eq!(*y, expected.round_ties_even() as u8, "{}: {x}", isa.name());
            }
            let mut zero = [7; LANES];
            ToBytes(coding).run(isa, &[0.0; LANES], &mut zero);
            assert_eq!(zero, [coding.zero; LANES]);
        }
        assert_eq!(Coding::of(0.0, 0.0), None);
        assert_eq!(Coding::of(0.0, f32::INFINITY), None);
        assert_eq!(Coding::of(f32::NAN, f32::NAN), None);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let Some(dot) = Isa::detect().and_then(Dot::of) else { return };
    let mut dice = Dice(16);
    for (cin, cout, side) in [(24, 144, 56), (192, 320, 7), (144, 24, 56)] {
        let case = Case::of(&mut dice, cin, cout, [side, side]);
        let alone = case.given(dot);
        for threads in [2, 3, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (split, y) = pool.install(|| {
                parallel::together(|| {
                    (parallel::pieces(case.geometry.macs() / 2, 100), case.given(dot))
                })
            });
            assert!(split > 1, "nothing was split, so nothing was tested");
            assert_eq!(alone, y);
        }
    }
}
