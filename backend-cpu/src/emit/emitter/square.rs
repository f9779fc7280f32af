//! Squares of vectors.
use super::{Emitter, Val};

impl Emitter {
    /// The transpose of as many vectors as they have lanes (a power of two): blocks of falling size change places.
    pub fn transposed(&mut self, mut rows: Vec<Val>) -> Vec<Val> {
        let n = rows.len();
        let mut size = n / 2;
        while size > 0 {
            for i in (0..n).filter(|i| i & size == 0) {
                let (a, b) = (rows[i], rows[i + size]);
                let low = (0..n).map(|j| if j & size == 0 { j } else { n + j - size }).collect::<Vec<_>>();
                let high = (0..n).map(|j| if j & size == 0 { j + size } else { n + j }).collect::<Vec<_>>();
                (rows[i], rows[i + size]) = (self.shuffle(a, b, &low), self.shuffle(a, b, &high));
            }
            size /= 2;
        }
        rows
    }
}
