//! The kernels of every instruction set of this CPU against loops in f64.

use super::blocks::{from_planes, len, to_planes};
use super::conv::{Channel, Conv};
use super::depthwise::Depthwise;
use super::geometry::Geometry;
use super::parallel;
use super::post::Post;
use super::simd::{Isa, LANES};

/// Random geometries per instruction set; fewer where each takes a hundred times as long: in Miri,
/// and under valgrind (`cargo xtask memcheck`).
pub(super) const CASES: usize = match option_env!("PAWLATCH_SLOW_CPU") {
    _ if cfg!(miri) => 12,
    Some(_) => 100,
    None => 3000,
};

/// A small generator (Knuth's MMIX), so that every run sees the same cases.
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    pub(super) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }

    /// A geometry with windows up to 5x5, any stride, dilation, padding and grouping.
    pub(super) fn geometry(&mut self) -> Geometry {
        loop {
            let pointwise = self.below(4) == 0;
            let mut pair = |low: usize, n: usize| match pointwise {
                true => [low, low],
                false => [low + self.below(n), low + self.below(n)],
            };
            let (kernel, stride, dilation) = (pair(1, 5), pair(1, 3), pair(1, 2));
            let pad = if pointwise { [0, 0] } else { kernel.map(|k| self.below(k)) };
            let input = [1 + self.below(20), 1 + self.below(45)];
            let output = |axis: usize| {
                let reach = (kernel[axis] - 1) * dilation[axis] + 1;
                let room = (input[axis] + 2 * pad[axis]).checked_sub(reach)?;
                Some(room / stride[axis] + 1)
            };
            let (Some(height), Some(width)) = (output(0), output(1)) else { continue };
            let groups = [1, 1, 2, 3][self.below(4)];
            let (mut cin, mut cout) =
                ((1 + self.below(24)) * groups, (1 + self.below(40)) * groups);
            let mut groups = groups;
            if !pointwise && self.below(3) == 0 {
                (groups, cout) = (cin, cin);
            } else if self.below(8) == 0 {
                // A channel multiplier: more outputs than inputs per group.
                (cin, cout, groups) = (cin.min(6), cin.min(6) * 3, cin.min(6));
            }
            let output = [height, width];
            return Geometry { cin, cout, groups, input, output, kernel, stride, dilation, pad };
        }
    }

    fn posts(&mut self) -> Vec<Post> {
        match self.below(6) {
            0 => vec![],
            1 => vec![Post::Clamp(0.0, 6.0)],
            2 => vec![Post::Silu, Post::Residual],
            3 => vec![Post::Clamp(0.0, f32::INFINITY), Post::Affine(1.5, -0.25), Post::Sigmoid],
            4 => vec![Post::Leaky(0.1), Post::Product],
            _ => vec![Post::Residual, Post::HardSwish(1.0 / 6.0, 0.5)],
        }
    }
}

/// A case: planar inputs and what the loop makes of them.
struct Case {
    geometry: Geometry,
    posts: Vec<Post>,
    x: Vec<f32>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    other: Vec<f32>,
}

impl Case {
    fn new(dice: &mut Dice) -> Self {
        let g = dice.geometry();
        Self {
            posts: dice.posts(),
            x: dice.floats(g.cin * g.input_pixels()),
            weights: dice.floats(g.cout * g.cin / g.groups * g.taps()),
            bias: dice.floats(g.cout),
            other: dice.floats(g.cout * g.output_pixels()),
            geometry: g,
        }
    }

    /// The output by definition, planar; `max` pools instead.
    fn expected(&self, max: bool) -> Vec<f64> {
        let g = &self.geometry;
        let (cg, og) = (g.cin / g.groups, g.cout / g.groups);
        let mut y = Vec::new();
        for m in 0..g.cout {
            for oy in 0..g.output[0] {
                for ox in 0..g.output[1] {
                    let mut sum = if max { f64::NEG_INFINITY } else { f64::from(self.bias[m]) };
                    for c in 0..cg {
                        for tap in 0..g.taps() {
                            let at = |axis: usize, o: usize, k: usize| {
                                (o * g.stride[axis] + k * g.dilation[axis])
                                    .checked_sub(g.pad[axis])
                                    .filter(|i| *i < g.input[axis])
                            };
                            let iy = at(0, oy, tap / g.kernel[1]);
                            let ix = at(1, ox, tap % g.kernel[1]);
                            let (Some(iy), Some(ix)) = (iy, ix) else { continue };
                            let channel = m / og * cg + c;
                            let x = self.x[(channel * g.input[0] + iy) * g.input[1] + ix];
                            if max {
                                sum = sum.max(f64::from(x));
                            } else {
                                let w = self.weights[(m * cg + c) * g.taps() + tap];
                                sum += f64::from(w) * f64::from(x);
                            }
                        }
                    }
                    let other = f64::from(self.other[y.len()]);
                    y.push(if max { sum } else { posted(&self.posts, sum, other) });
                }
            }
        }
        y
    }

    fn describe(&self) -> String {
        format!("{:?} {:?}", self.geometry, self.posts)
    }
}

fn posted(posts: &[Post], x: f64, other: f64) -> f64 {
    posts.iter().fold(x, |x, post| match *post {
        Post::Clamp(low, high) => x.clamp(f64::from(low), f64::from(high)),
        Post::Affine(a, b) => f64::from(a) * x + f64::from(b),
        Post::Silu => x / (1.0 + (-x).exp()),
        Post::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Post::Leaky(a) => {
            if x > 0.0 {
                x
            } else {
                f64::from(a) * x
            }
        }
        Post::HardSwish(a, b) => x * (f64::from(a) * x + f64::from(b)).clamp(0.0, 1.0),
        Post::Residual => x + other,
        Post::Product => x * other,
    })
}

pub(super) fn blocked(channels: usize, planes: &[f32]) -> Vec<f32> {
    let mut y = vec![f32::NAN; len(channels, planes.len() / channels)];
    from_planes(channels, planes, &mut y);
    y
}

fn planes(channels: usize, blocks: &[f32]) -> Vec<f32> {
    let mut y = vec![f32::NAN; channels * blocks.len() / len(channels, 1)];
    to_planes(channels, blocks, &mut y);
    y
}

/// Fails if `y` (blocks) is not `expected` (planes) to f32's accuracy.
fn check(isa: Isa, case: &Case, y: &[f32], expected: &[f64]) {
    let y = planes(case.geometry.cout, y);
    assert_eq!(y.len(), expected.len());
    for (i, (y, e)) in y.iter().zip(expected).enumerate() {
        let error = (f64::from(*y) - e).abs();
        let close = error <= 2e-5 * e.abs().max(1.0) || f64::from(*y) == *e;
        assert!(close, "{}: {y} is not {e} at {i} of {}", isa.name(), case.describe());
    }
}

fn convolved(isa: Isa, case: &Case, planar: bool) -> Vec<f32> {
    let (g, posts) = (case.geometry.clone(), case.posts.clone());
    let mut y = vec![f32::NAN; g.output_len()];
    let other = blocked(g.cout, &case.other);
    let x = if planar { case.x.clone() } else { blocked(g.cin, &case.x) };
    if g.is_depthwise() {
        let op = Depthwise::convolution(g, &case.weights, &case.bias, posts);
        op.run(isa, &blocked(op.geometry().cin, &case.x), Some(&other), &mut y);
    } else {
        let op = Conv::windowed(isa, g, planar, &case.weights, &case.bias, posts);
        op.run(isa, &[&x], Some(&other), &mut y);
    }
    y
}

#[test]
fn convolutions_of_any_geometry_equal_the_loop() {
    for isa in Isa::available() {
        let mut dice = Dice(1);
        let cases = if isa == Isa::PORTABLE { CASES / 10 } else { CASES };
        for i in 0..cases.max(12) {
            let case = Case::new(&mut dice);
            check(isa, &case, &convolved(isa, &case, i % 2 == 0), &case.expected(false));
        }
    }
}

#[test]
fn pointwise_convolutions_read_channels_from_any_tensor_in_any_order() {
    for isa in Isa::available() {
        let mut dice = Dice(2);
        let mut done = 0;
        while done < CASES / 10 {
            let case = Case::new(&mut dice);
            let g = case.geometry.clone();
            if !g.is_pointwise() || g.groups != 1 {
                continue;
            }
            done += 1;
            // Deal the channels to two tensors, each with the foreign ones in between.
            let inputs: Vec<Channel> = (0..g.cin)
                .map(|i| Channel { tensor: dice.below(2), channel: (i * 7 + 3) % (g.cin * 7) })
                .collect();
            let pixels = g.input_pixels();
            let mut tensors = [dice.floats(g.cin * 7 * pixels), dice.floats(g.cin * 7 * pixels)];
            for (i, c) in inputs.iter().enumerate() {
                tensors[c.tensor][c.channel * pixels..][..pixels]
                    .copy_from_slice(&case.x[i * pixels..][..pixels]);
            }
            let tensors = tensors.map(|t| blocked(g.cin * 7, &t));
            let mut y = vec![f32::NAN; g.output_len()];
            let posts = case.posts.clone();
            let op = Conv::pointwise(isa, g.clone(), &inputs, &case.weights, &case.bias, posts);
            let other = blocked(g.cout, &case.other);
            op.run(isa, &[&tensors[0], &tensors[1]], Some(&other), &mut y);
            check(isa, &case, &y, &case.expected(false));
        }
    }
}

/// So many weights that they pass in several turns.
#[test]
fn deep_pointwise_convolutions_equal_the_loop() {
    for isa in Isa::available() {
        let mut dice = Dice(5);
        for posts in [vec![Post::Clamp(0.0, 6.0), Post::Residual], vec![Post::Silu]] {
            let (cin, cout, side) = (600 + dice.below(300), 1 + dice.below(60), 7);
            let geometry = Geometry {
                cin,
                cout,
                groups: 1,
                input: [side, side],
                output: [side, side],
                kernel: [1, 1],
                stride: [1, 1],
                dilation: [1, 1],
                pad: [0, 0],
            };
            let case = Case {
                x: dice.floats(cin * side * side),
                weights: dice.floats(cout * cin),
                bias: dice.floats(cout),
                other: dice.floats(cout * side * side),
                posts,
                geometry,
            };
            let inputs: Vec<Channel> =
                (0..cin).map(|channel| Channel { tensor: 0, channel }).collect();
            let (g, posts) = (case.geometry.clone(), case.posts.clone());
            let op = Conv::pointwise(isa, g, &inputs, &case.weights, &case.bias, posts);
            let mut y = vec![f32::NAN; case.geometry.output_len()];
            op.run(isa, &[&blocked(cin, &case.x)], Some(&blocked(cout, &case.other)), &mut y);
            check(isa, &case, &y, &case.expected(false));
        }
    }
}

#[test]
fn max_pooling_of_any_geometry_equals_the_loop() {
    for isa in Isa::available() {
        let mut dice = Dice(3);
        let mut done = 0;
        while done < CASES / 10 {
            let case = Case::new(&mut dice);
            if !case.geometry.is_depthwise() {
                continue;
            }
            done += 1;
            let op = Depthwise::max_pooling(case.geometry.clone(), vec![]);
            let x = blocked(case.geometry.cin, &case.x);
            let mut y = vec![f32::NAN; case.geometry.output_len()];
            op.run(isa, &x, None, &mut y);
            check(isa, &case, &y, &case.expected(true));
        }
    }
}

#[test]
fn nan_is_never_clamped_away() {
    let posts = [
        Post::Clamp(0.0, 6.0),
        Post::Silu,
        Post::Sigmoid,
        Post::Leaky(0.1),
        Post::HardSwish(1.0 / 6.0, 0.5),
    ];
    for isa in Isa::available() {
        for post in posts {
            let mut y = [f32::NAN; LANES];
            // SAFETY: sixteen floats, and no step is binary.
            unsafe { super::post::apply_all(isa, &[post], y.as_mut_ptr(), std::ptr::null(), 1) }
            assert!(y.iter().all(|y| y.is_nan()), "{}: {post:?}", isa.name());
        }
    }
}

#[test]
fn the_logistic_function_is_accurate_over_its_whole_range() {
    for isa in Isa::available() {
        let x: Vec<f32> = (-9600..9600).map(|i| i as f32 / 100.0).collect();
        let mut y = x.clone();
        // SAFETY: the length is a multiple of sixteen and no step is binary.
        unsafe {
            let n = y.len() / LANES;
            super::post::apply_all(isa, &[Post::Sigmoid], y.as_mut_ptr(), std::ptr::null(), n);
        }
        for (x, y) in x.iter().zip(y) {
            let e = 1.0 / (1.0 + (-f64::from(*x)).exp());
            let error = (f64::from(y) - e).abs();
            assert!(error < 2e-7, "{}: {y} is not {e} at {x}", isa.name());
        }
    }
}

/// Enough work per case that every thread gets a piece.
#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let geometry = |kernel: usize, stride: usize, groups: usize| Geometry {
        cin: 96,
        cout: 96,
        groups,
        input: [40, 44],
        output: [40 / stride, 44 / stride],
        kernel: [kernel, kernel],
        stride: [stride, stride],
        dilation: [1, 1],
        pad: [kernel / 2, kernel / 2],
    };
    let Some(isa) = Isa::detect() else { return };
    let mut dice = Dice(4);
    for (kernel, stride, groups) in [(1, 1, 1), (3, 1, 1), (3, 2, 2), (5, 1, 96), (3, 2, 96)] {
        let g = geometry(kernel, stride, groups);
        let case = Case {
            posts: vec![Post::Silu, Post::Residual],
            x: dice.floats(g.cin * g.input_pixels()),
            weights: dice.floats(g.cout * g.cin / g.groups * g.taps()),
            bias: dice.floats(g.cout),
            other: dice.floats(g.cout * g.output_pixels()),
            geometry: g,
        };
        let alone = convolved(isa, &case, false);
        for threads in [2, 3, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (split, y) = pool.install(|| {
                parallel::together(|| {
                    let pieces = parallel::pieces(4 * case.geometry.macs(), 100);
                    (pieces, convolved(isa, &case, false))
                })
            });
            assert!(split > 1, "nothing was split, so nothing was tested");
            assert!(alone.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
