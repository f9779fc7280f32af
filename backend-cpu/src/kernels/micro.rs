//! The register-blocked product that matmuls and products of activations share.
use crate::emit::{Emitter, Ty, Val};

/// Steps of the inner size per iteration.
const UNROLL: usize = 4;

/// `rows × nr` sums in registers over some length of the inner size. The right operand is a panel `f32[length, nr]`.
#[derive(Clone, Copy)]
pub struct Micro {
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile, a multiple of the lanes.
    pub nr: usize,
    /// Bytes from one row of the left operand to the next.
    pub row_stride: usize,
    /// Bytes from one inner index of the left operand to the next.
    pub step: usize,
    /// Whether every length is a multiple of four.
    pub even: bool,
}

/// A part of what is asked for in a round of an [`Ahead`]: the round (`i64`), and which of how many parts.
pub type Share = (Val, (usize, usize));

/// Lanes from which on a loop of steps between requests, of a length that LLVM does not know, keeps them apart. With the 32
/// registers of AVX-512 it moves loads to before all requests of a block, and spills what they load; with fewer it does not,
/// and the loops cost 6 % of the time.
const FENCED: usize = 16;

/// What a micro-kernel asks memory for while it computes: requests one after the other between its steps, since a core can wait
/// for a dozen cache lines at a time and stands still beyond that.
pub struct Ahead<'a> {
    rounds: usize,
    /// Each goes with some steps of the inner size.
    parts: usize,
    lines: &'a dyn Fn(&mut Emitter, Share),
}

impl<'a> Ahead<'a> {
    /// Rounds spread over any inner block of `kc` of `k` steps, in which `lines` asks for the cache lines of a share; `None` if the
    /// shortest block has too few steps.
    pub fn over(rounds: usize, (k, kc): (usize, usize), lines: &'a dyn Fn(&mut Emitter, Share)) -> Option<Ahead<'a>> {
        let shortest = k - (k - 1) / kc * kc;
        let parts = (shortest / UNROLL / rounds).min(4);
        (parts > 0).then_some(Ahead { rounds, parts, lines })
    }
}

impl Micro {
    /// Whether every inner block has a length that is a multiple of the unrolled steps.
    pub fn is_even(k: usize, kc: usize) -> bool {
        k.is_multiple_of(UNROLL) && kc.is_multiple_of(UNROLL)
    }

    /// Emits the tile. Sums begin at zero where `first` (`i1`) is true or absent, else at those at `sums: f32[rows, nr]`,
    /// where they are stored. The length has room for `ahead`.
    pub fn emit(
        &self,
        e: &mut Emitter,
        (left, right): (Val, Val),
        length: Val,
        (sums, first): (Val, Option<Val>),
        ahead: Option<&Ahead>,
    ) {
        let lanes = e.lanes;
        let vectors = self.nr / lanes;
        let total = self.rows * vectors;
        let zero = e.f32(0.0, lanes);
        let address =
            |e: &mut Emitter, i: usize| e.offset_const(sums, (i / vectors * self.nr + i % vectors * lanes) * 4);
        let mut tile = match first {
            None => vec![zero; total],
            Some(first) => {
                let load = |e: &mut Emitter| {
                    let mut load = |i| {
                        let from = address(e, i);
                        e.load_raw(from, Ty::f32(lanes))
                    };
                    (0..total).map(&mut load).collect()
                };
                e.branch(first, &vec![Ty::f32(lanes); total], |_| vec![zero; total], load)
            }
        };
        let mut start = e.i64(0);
        if let Some(ahead) = ahead {
            let steps = ahead.parts * UNROLL;
            let unit = (lanes >= FENCED).then(|| e.opaque(UNROLL));
            let end = e.i64(ahead.rounds * steps);
            tile = e.for_range(start, end, steps, &tile, |e, k, tile| {
                let (round, mut tile) = (e.div_rem(k, steps).0, tile.to_vec());
                for part in 0..ahead.parts {
                    (ahead.lines)(e, (round, (part, ahead.parts)));
                    let k = e.add_const(k, part * UNROLL);
                    tile = match unit {
                        Some(unit) => {
                            let end = e.add(k, unit);
                            let steps =
                                |e: &mut Emitter, k: Val, tile: &[Val]| self.steps(e, (left, right), k, tile, UNROLL);
                            e.for_range(k, end, UNROLL, &tile, steps)
                        }
                        None => self.steps(e, (left, right), k, &tile, UNROLL),
                    };
                }
                tile
            });
            start = end;
        }
        let whole = if self.even {
            length
        } else {
            let (quarters, _) = e.div_rem(length, UNROLL);
            e.mul_const(quarters, UNROLL)
        };
        tile = e.for_range(start, whole, UNROLL, &tile, |e, k, tile| self.steps(e, (left, right), k, tile, UNROLL));
        if !self.even {
            tile = e.for_range(whole, length, 1, &tile, |e, k, tile| self.steps(e, (left, right), k, tile, 1));
        }
        for (i, &sum) in tile.iter().enumerate() {
            let to = address(e, i);
            e.store_raw(to, sum);
        }
    }

    fn steps(&self, e: &mut Emitter, (left, right): (Val, Val), k: Val, tile: &[Val], steps: usize) -> Vec<Val> {
        let lanes = e.lanes;
        let vectors = self.nr / lanes;
        let (left, right) = (e.at(left, k, self.step), e.at(right, k, self.nr * 4));
        let mut tile = tile.to_vec();
        for u in 0..steps {
            let columns: Vec<Val> = (0..vectors)
                .map(|v| {
                    let from = e.offset_const(right, (u * self.nr + v * lanes) * 4);
                    e.load_raw(from, Ty::f32(lanes))
                })
                .collect();
            for row in 0..self.rows {
                let from = e.offset_const(left, row * self.row_stride + u * self.step);
                let x = e.load_raw(from, Ty::f32(1));
                let x = e.splat(x, lanes);
                for (v, &column) in columns.iter().enumerate() {
                    tile[row * vectors + v] = e.fma(x, column, tile[row * vectors + v]);
                }
            }
        }
        tile
    }
}
