//! The layout that `pack` stands for, and int8 quantisation: what the interpreter computes op by op, and what the
//! runtime does when it writes or draws weights. Large weights are packed a range of panels at a time.
use crate::infer::k_pack;
use crate::types::DType;
use half::bf16;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The layout of a packed weight; see the op `pack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packing {
    /// Rows of the weight: columns of the product.
    pub n: usize,
    /// Columns of the weight.
    pub k: usize,
    /// Panel width.
    pub nr: usize,
    /// Parts; 1 unless several equal parts lie side by side in each panel.
    pub parts: usize,
    /// How many consecutive k are interleaved.
    pub kp: usize,
}

/// The stored element type of a packed weight.
#[derive(Clone, Copy, Debug)]
pub enum Element<'s> {
    /// As it is.
    F32,
    /// Rounded to nearest even.
    BF16,
    /// Quantised with these scales, one for each row of the unpacked weight.
    I8(&'s [f32]),
}

impl Element<'_> {
    /// The element type of the stored data.
    pub fn dtype(&self) -> DType {
        match self {
            Element::F32 => DType::F32,
            Element::BF16 => DType::BF16,
            Element::I8(_) => DType::I8,
        }
    }
}

impl Packing {
    /// The layout of `pack {nr, parts}` for a weight `dtype[n, k]`.
    pub fn new(dtype: DType, n: usize, k: usize, nr: usize, parts: usize) -> Packing {
        Packing { n, k, nr, parts, kp: k_pack(dtype) }
    }
    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(self.nr)
    }
    /// Elements of a panel.
    pub fn panel_elements(&self) -> usize {
        self.k.div_ceil(self.kp) * self.nr * self.kp
    }
    /// The weight's row in column `c` of panel `p`; none in the padding.
    pub fn row(&self, p: usize, c: usize) -> Option<usize> {
        let width = self.nr / self.parts;
        let row = (c / width) * (self.n / self.parts) + p * width + c % width;
        // With several parts there is no padding, and a part's last row is followed by another part.
        (row < self.n).then_some(row)
    }
    /// The panel of a row and its column in it.
    pub fn column(&self, row: usize) -> (usize, usize) {
        if self.parts == 1 {
            return (row / self.nr, row % self.nr);
        }
        let (width, part) = (self.nr / self.parts, self.n / self.parts);
        ((row % part) / width, row / part * width + row % part % width)
    }
    /// The place of element (row, k) in the packed data, counted in elements.
    pub fn place(&self, row: usize, k: usize) -> usize {
        let (p, c) = self.column(row);
        p * self.panel_elements() + (k / self.kp * self.nr + c) * self.kp + k % self.kp
    }
    /// Packs a range of panels. `row(n, buffer)` writes row n of the weight (k numbers) into the buffer; `out` is the range's
    /// `range.len() * panel_elements()` elements, little-endian. Different ranges can be packed at the same time.
    pub fn pack_panels(
        &self,
        element: Element<'_>,
        range: Range<usize>,
        mut row: impl FnMut(usize, &mut [f32]),
        out: &mut [u8],
    ) {
        let kpad = self.k.div_ceil(self.kp) * self.kp;
        let bytes = self.panel_elements() * element.dtype().bytes();
        let mut rows = vec![0.0; self.nr * kpad];
        let mut scales = vec![1.0; self.nr];
        for (p, out) in range.zip(out.chunks_exact_mut(bytes)) {
            for c in 0..self.nr {
                let buffer = &mut rows[c * kpad..][..self.k];
                match self.row(p, c) {
                    Some(n) => row(n, buffer),
                    None => buffer.fill(0.0),
                }
                if let (Element::I8(all), Some(n)) = (element, self.row(p, c)) {
                    scales[c] = all[n];
                }
            }
            match element {
                Element::F32 => self.interleave(&rows, kpad, out, |_, v| v.to_le_bytes()),
                Element::BF16 => self.interleave(&rows, kpad, out, |_, v| bf16::from_f32(v).to_le_bytes()),
                Element::I8(_) => self.interleave(&rows, kpad, out, |c, v| quantize(v, scales[c]).to_le_bytes()),
            }
        }
    }
    /// Writes `rows: [nr, kpad]` as one panel.
    fn interleave<const BYTES: usize>(
        &self,
        rows: &[f32],
        kpad: usize,
        out: &mut [u8],
        encode: impl Fn(usize, f32) -> [u8; BYTES],
    ) {
        let out = out.as_chunks_mut::<BYTES>().0;
        // The two interleaves that exist, as constants: the inner loop then has no division.
        if self.kp == 1 {
            self.interleave_by::<1, BYTES>(rows, kpad, out, encode);
        } else {
            self.interleave_by::<2, BYTES>(rows, kpad, out, encode);
        }
    }
    /// Goes by blocks of k that keep both sides in the first-level cache.
    fn interleave_by<const KP: usize, const BYTES: usize>(
        &self,
        rows: &[f32],
        kpad: usize,
        out: &mut [[u8; BYTES]],
        encode: impl Fn(usize, f32) -> [u8; BYTES],
    ) {
        const BLOCK: usize = 16;
        for (block, out) in out.chunks_mut(BLOCK * self.nr).enumerate() {
            let (start, len) = (block * BLOCK, out.len() / self.nr);
            for c in 0..self.nr {
                let groups = rows[c * kpad + start..][..len].as_chunks::<KP>().0;
                // The column's elements of each group of k lie nr * KP apart.
                let places = out[c * KP..].chunks_mut(self.nr * KP);
                for (values, place) in groups.iter().zip(places) {
                    for j in 0..KP {
                        place[j] = encode(c, values[j]);
                    }
                }
            }
        }
    }
}

/// The int8 scale of a row: `max|row| / 127`, or 1 for a row of zeros.
pub fn row_scale(row: &[f32]) -> f32 {
    let max = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    if max > 0.0 { max / 127.0 } else { 1.0 }
}

/// A number as a multiple of the scale, rounded to nearest even.
pub fn quantize(value: f32, scale: f32) -> i8 {
    // Adding and taking away 1.5 * 2^23 rounds small numbers to nearest even, without a call on machines that lack the
    // instruction.
    const SHIFT: f32 = 12_582_912.0;
    ((value / scale).clamp(-127.0, 127.0) + SHIFT - SHIFT) as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(packing: Packing, element: Element<'_>) -> Vec<u8> {
        let mut out = vec![0xff; packing.panels() * packing.panel_elements() * element.dtype().bytes()];
        let middle = out.len() / packing.panels() * (packing.panels() / 2);
        let row = |n: usize, buffer: &mut [f32]| {
            buffer.iter_mut().enumerate().for_each(|(k, v)| *v = (n * 100 + k) as f32);
        };
        let (first, second) = out.split_at_mut(middle);
        packing.pack_panels(element, 0..packing.panels() / 2, row, first);
        packing.pack_panels(element, packing.panels() / 2..packing.panels(), row, second);
        out
    }

    #[test]
    fn every_element_is_at_its_place() {
        for (n, k, nr, parts) in [(10, 5, 4, 1), (16, 33, 8, 2), (24, 3, 8, 4), (1, 1, 16, 1), (7, 40, 16, 1)] {
            let packing = Packing::new(DType::F32, n, k, nr, parts);
            let data = packed(packing, Element::F32);
            let at = |place: usize| f32::from_le_bytes(std::array::from_fn(|i| data[place * 4 + i]));
            let sum: f64 = (0..data.len() / 4).map(|i| at(i) as f64).sum();
            let mut want = 0.0;
            for row in 0..n {
                let (p, c) = packing.column(row);
                assert_eq!(packing.row(p, c), Some(row));
                for i in 0..k {
                    assert_eq!(at(packing.place(row, i)), (row * 100 + i) as f32);
                    want += (row * 100 + i) as f64;
                }
            }
            assert_eq!(sum, want, "padding is not zero");
            let packing = Packing::new(DType::BF16, n, k, nr, parts);
            let data = packed(packing, Element::BF16);
            for row in 0..n {
                for i in 0..k {
                    let place = packing.place(row, i) * 2;
                    let value = bf16::from_le_bytes([data[place], data[place + 1]]);
                    assert_eq!(value, bf16::from_f32((row * 100 + i) as f32));
                }
            }
        }
    }

    #[test]
    fn quantisation() {
        let row = [0.5, -127.0, 1.5, 2.5, f32::NAN];
        assert_eq!(row_scale(&row), 1.0);
        assert_eq!(row.map(|v| quantize(v, 1.0)), [0, -127, 2, 2, 0]);
        assert_eq!(row_scale(&[0.0; 3]), 1.0);
        for i in -1300..1300 {
            let value = i as f32 / 10.0;
            assert_eq!(quantize(value, 1.0), value.round_ties_even().clamp(-127.0, 127.0) as i8);
        }
        let packing = Packing::new(DType::I8, 3, 2, 2, 1);
        let data = packed(packing, Element::I8(&[1.0, 10.0, 2.0]));
        assert_eq!(data.iter().map(|&b| b as i8).collect::<Vec<_>>(), [0, 10, 1, 10, 100, 0, 100, 0]);
    }
}
