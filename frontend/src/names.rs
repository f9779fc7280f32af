//! "Did you mean": the nearest of a set of names.

/// The known name nearest to `name`, if it is near enough to be a slip: at most a third of the letters differ.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names longer than this are not typed by hand; the distance is quadratic.
    const LONGEST: usize = 200;
    if name.len() > LONGEST {
        return None;
    }
    let limit = (name.chars().count().max(3)).div_ceil(3);
    known
        .into_iter()
        .filter(|k| k.len() <= LONGEST && *k != name)
        .map(|k| (distance(&name.to_lowercase(), &k.to_lowercase()), k))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, k)| (*d, k.len().abs_diff(name.len())))
        .map(|(_, k)| k)
}

/// Edits (insert, delete, replace, swap of neighbours) that turn one string into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let width = b.len() + 1;
    let mut d: Vec<usize> = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let cost = usize::from(a[i - 1] != b[j - 1]);
                let mut best =
                    (d[(i - 1) * width + j] + 1).min(d[i * width + j - 1] + 1).min(d[(i - 1) * width + j - 1] + cost);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(d[(i - 2) * width + j - 2] + 1);
                }
                best
            };
        }
    }
    d[d.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let known = ["dim", "heads", "rope_base", "layers_core"];
        assert_eq!(nearest("haeds", known), Some("heads"));
        assert_eq!(nearest("ropebase", known), Some("rope_base"));
        assert_eq!(nearest("Dim", known), Some("dim"));
        assert_eq!(nearest("temperature", known), None);
    }
}
