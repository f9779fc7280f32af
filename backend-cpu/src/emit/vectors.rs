//! How a row is cut into vectors.

/// Pieces of `width` columns: full vectors of `lanes`, and (start, lanes) of the rest in falling powers of two.
pub fn pieces(width: usize, lanes: usize) -> (usize, Vec<(usize, usize)>) {
    let full = width / lanes;
    let (mut start, mut tail, mut size) = (full * lanes, Vec::new(), lanes / 2);
    while start < width {
        if start + size <= width {
            tail.push((start, size));
            start += size;
        }
        size /= 2;
    }
    (full, tail)
}

/// (start, lanes) of every piece of a row.
pub fn all_pieces(width: usize, lanes: usize) -> Vec<(usize, usize)> {
    let (full, tail) = pieces(width, lanes);
    (0..full).map(|i| (i * lanes, lanes)).chain(tail).collect()
}
