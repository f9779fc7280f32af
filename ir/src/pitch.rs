//! How far apart rows lie in memory, so that they do not keep each other out of a first-level cache: it holds a few lines whose
//! addresses differ by multiples of a page.

/// Bytes between addresses that fall into the same set of a first-level cache.
const SET_STRIDE: usize = 4096;
/// Rows that fall into one set of a first-level cache and still stay there together.
const WAYS: usize = 4;

/// Whether so many rows, so many bytes apart, keep each other out of a first-level cache.
pub fn collide(rows: usize, stride: usize) -> bool {
    rows > WAYS && stride.is_multiple_of(SET_STRIDE)
}

/// Bytes of so many floats and some more: an odd number of cache lines, so that rows do not fall on each other in the cache.
pub fn odd_lines(floats: usize) -> usize {
    (floats.saturating_mul(4).div_ceil(64) | 1).saturating_mul(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_an_odd_number_of_lines_apart_do_not_collide() {
        assert!(collide(5, 4096) && collide(1024, 8192));
        assert!(!collide(4, 4096) && !collide(1024, 4160) && !collide(1024, 1536));
        for floats in [1, 16, 17, 384, 1024, 2048, 4096] {
            let bytes = odd_lines(floats);
            assert!(bytes >= floats * 4 && bytes < floats * 4 + 128 && (bytes / 64) % 2 == 1, "{floats}");
            assert!(!collide(1024, bytes));
        }
    }
}
