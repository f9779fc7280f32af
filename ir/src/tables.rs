//! The tables that `rope_table` and `sinusoid_table` stand for. The interpreter, the compiler and the runtime evaluate
//! them here, so that all have the same bits.
//!
//! Angles are products of f32 numbers and their cosines and sines are f32, whatever precision the rest is computed in:
//! models are trained with tables made that way.

/// `1 / base^(2j/dim)` for j in `0..dim/2`, each step rounded to f32.
fn frequencies(dim: usize, base: f64) -> Vec<f32> {
    (0..dim / 2).map(|j| 1.0 / (base as f32).powf((2 * j) as f32 / dim as f32)).collect()
}

/// `[len, dim/2, 2]`, row-major: (cos, sin) of `i * base^(-2j/dim)`.
pub fn rope_table(len: usize, dim: usize, base: f64) -> Vec<f32> {
    let frequencies = frequencies(dim, base);
    let angles = (0..len).flat_map(|i| frequencies.iter().map(move |w| i as f32 * w));
    angles.flat_map(|angle| [angle.cos(), angle.sin()]).collect()
}

/// `[len, dim]`, row-major: `sin(i w_j)` for j < dim/2, then `cos(i w_j)`; `w_j = base^(-2j/dim)`.
pub fn sinusoid_table(len: usize, dim: usize, base: f64) -> Vec<f32> {
    let frequencies = frequencies(dim, base);
    let mut table = Vec::with_capacity(len * dim);
    for i in 0..len {
        table.extend(frequencies.iter().map(|w| (i as f32 * w).sin()));
        table.extend(frequencies.iter().map(|w| (i as f32 * w).cos()));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        let rope = rope_table(3, 4, 10000.0);
        assert_eq!(rope.len(), 12);
        assert_eq!(rope[..4], [1.0, 0.0, 1.0, 0.0]);
        assert_eq!(rope[8..], [2f32.cos(), 2f32.sin(), 0.02f32.cos(), 0.02f32.sin()]);
        let sinusoid = sinusoid_table(3, 4, 10000.0);
        assert_eq!(sinusoid[8..], [2f32.sin(), 0.02f32.sin(), 2f32.cos(), 0.02f32.cos()]);
    }
}
