//! Padding and pieces: a text and an artifact give the same numbers, or what mixes positions is refused by its line.
use crate::support::*;
use std::path::{Path, PathBuf};

const VOCAB: usize = 32;
const DIM: usize = 8;

/// A text and an artifact of it, of eight positions and of one. Token 0, of which padding is, wants five steps, odd tokens three, others
/// two.
struct Files {
    folder: tempfile::TempDir,
    text: PathBuf,
    artifact: PathBuf,
}

impl Files {
    fn new(core: &str) -> Files {
        let folder = folder();
        let text = format!(
            "model M {{
  size vocab = {VOCAB}, dim = {DIM}, context = 32, max_steps = 5
  weight embed: [vocab, dim] = normal(1)
  weight wanted: [vocab, 1] = 1
  weight w: [dim, dim] = normal(0.3)
  layer Att(x: [B, S, dim]) -> [B, S, dim] {{
    return x + merge(attention(heads(x, 2), heads(x, 2), heads(x, 2), causal = true))
  }}
  part att: Att
  prelude (input_ids) -> e, need {{
    let e = gather(embed, input_ids)
    let need = squeeze(gather(wanted, input_ids))
  }}
  core (h = e, e, need, n: [B, S] = 0) -> h, n loop default 5 max max_steps {{
{core}
  }}
  coda (h, trips) -> y, turned, trips {{
    let y = h
    let turned = transpose(h, [0, 2, 1])
  }}
}}
"
        );
        let number = |i: usize| (i * 37 % 101) as f64 / 101.0 - 0.5;
        let matrix = |rows| Tensor::floats(&[rows, DIM], (0..rows * DIM).map(number).collect());
        let wanted = (0..VOCAB).map(|id| if id == 0 { 5.0 } else { (2 + id % 2) as f64 });
        let weights = [
            ("embed".to_string(), matrix(VOCAB)),
            ("w".to_string(), matrix(DIM)),
            ("wanted".to_string(), Tensor::floats(&[VOCAB, 1], wanted.collect())),
        ];
        let path = |name: &str| folder.path().join(name);
        let files = Files { text: path("model.rdm"), artifact: path("model.rda"), folder };
        std::fs::write(&files.text, text).unwrap();
        write(&files.weights(), &weights.into());
        let paths = [&files.text, &files.weights(), &files.artifact].map(|path| path.to_str().unwrap().to_string());
        ok(&["compile", &paths[0], "--weights", &paths[1], "--seq", "8", "-o", &paths[2]]);
        files
    }
    fn weights(&self) -> PathBuf {
        self.folder.path().join("weights.safetensors")
    }
    /// What the text and the artifact give.
    #[track_caller]
    fn both(&self, ids: &[f64], args: &[&str]) -> [Tensors; 2] {
        let given = inputs(&Tensor::ids(&[1, ids.len()], ids.to_vec()), None);
        let weights = self.weights();
        let flags = [&["--weights", weights.to_str().unwrap()], args].concat();
        [run(&self.text, &given, &flags), run(&self.artifact, &given, args)]
    }
    /// `rdc run` that must fail; returns stderr.
    #[track_caller]
    fn refused(&self, file: &Path, length: usize, args: &[&str]) -> String {
        let input = self.folder.path().join("in.safetensors");
        write(&input, &inputs(&Tensor::ids(&[1, length], vec![1.0; length]), None));
        let paths = ["run", file.to_str().unwrap(), "--input", input.to_str().unwrap(), "--output", "/dev/null"];
        fails(&[&paths, args].concat())
    }
}

#[track_caller]
fn same(actual: &Tensors, expected: &Tensors) {
    for name in ["y", "turned", "trips"] {
        assert_close(name, &actual[name], &expected[name], TOLERANCE);
    }
}

const EXIT: &str = "    let h = att(tanh(linear(h, w) + e))\n    let n = n + 1\n    exit when all(n >= need)";

#[test]
fn padding_has_no_vote() {
    let files = Files::new(EXIT);
    for (ids, trips) in [(&[2.0, 4.0, 6.0][..], 2.0), (&[2.0, 5.0, 6.0, 8.0, 10.0], 3.0), (&[2.0; 8], 2.0)] {
        let [text, artifact] = files.both(ids, &[]);
        assert_eq!(text["trips"].data, [trips], "{ids:?}");
        same(&artifact, &text);
    }
}

/// Each piece ends for itself, as a sequence that ends there does, and later ones find keys and values of every step.
#[test]
fn an_exit_in_pieces() {
    let files = Files::new(EXIT);
    let ids = [2.0, 4.0, 6.0, 8.0, 10.0, 0.0, 3.0, 12.0];
    let [text, artifact] = files.both(&ids, &["--chunks", "5,1,2"]);
    same(&artifact, &text);
    let [first, _] = files.both(&ids[..5], &[]);
    assert_eq!(first["trips"].data, [2.0]);
    assert_close("y", &text["y"].slice(1, 0, 5), &first["y"], TOLERANCE);
    assert_close("turned", &text["turned"].slice(2, 0, 5), &first["turned"], TOLERANCE);
    // The token that takes five steps is what it is where all positions take five.
    let [whole, _] = files.both(&ids[..6], &[]);
    assert_eq!(whole["trips"].data, [5.0]);
    assert_close("y", &text["y"].slice(1, 5, 6), &whole["y"].slice(1, 5, 6), TOLERANCE);
}

#[test]
fn what_mixes_positions_is_refused_by_its_line() {
    let files = Files::new("    let h = tanh(h + mean(h, axis = 1, keep = true))");
    let [text, artifact] = files.both(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[]);
    same(&artifact, &text);
    let reason = "line 15, column ";
    let errors = files.refused(&files.artifact, 5, &[]);
    assert!(errors.contains(reason) && errors.contains("a sum over positions"), "{errors}");
    assert!(errors.contains("--seq 5"), "{errors}");
    for file in [&files.text, &files.artifact] {
        let errors = files.refused(file, 8, &["--chunks", "4,4"]);
        assert!(errors.contains(reason) && errors.contains("in pieces"), "{errors}");
    }
}
