//! Padding and pieces: a model whose positions depend on each other gives the same numbers from a text and from an artifact, or is
//! refused by the line that is the reason.
use crate::support::*;
use std::path::PathBuf;

/// A model in a file of the folder: `core` is an iteration of `h` from the embeddings `e`, `n` counts and `need` says how often.
fn model(folder: &tempfile::TempDir, core: &str) -> PathBuf {
    let text = format!(
        "model M {{
  size vocab = 32, dim = 8, context = 32, max_steps = 5
  weight embed: [vocab, dim] = normal(1)
  weight w: [dim, dim] = normal(0.3)
  layer Att(x: [B, S, dim]) -> [B, S, dim] {{
    return x + merge(attention(heads(x, 2), heads(x, 2), heads(x, 2), causal = true))
  }}
  part att: Att
  prelude (input_ids) -> e {{ let e = att(gather(embed, input_ids)) }}
  core (h = e, e, n: [B, S] = 0) -> h, n loop default 5 max max_steps {{
{core}
  }}
  coda (h, trips) -> y, turned, trips {{
    let y = h
    let turned = reshape(transpose(h, [0, 2, 1]), [B * dim, S])
  }}
}}
"
    );
    let path = folder.path().join("model.rdm");
    std::fs::write(&path, text).unwrap();
    path
}

fn ids(length: usize) -> Tensor {
    Tensor::ids(&[1, length], (0..length).map(|i| (i * 7 % 32) as f64).collect())
}

fn compiled(text: &std::path::Path) -> PathBuf {
    let path = text.with_extension("rda");
    ok(&["compile", text.to_str().unwrap(), "--seq", "8", "-o", path.to_str().unwrap()]);
    path
}

/// `rdc run` that must fail; returns stderr.
#[track_caller]
fn refused(file: &std::path::Path, length: usize, args: &[&str]) -> String {
    let folder = folder();
    let input = folder.path().join("in.safetensors");
    write(&input, &inputs(&ids(length), None));
    let paths = ["run", file.to_str().unwrap(), "--input", input.to_str().unwrap(), "--output", "/dev/null"];
    fails(&[&paths, args].concat())
}

/// Positions vote by their own numbers; those of padding would take longer.
#[test]
fn padding_has_no_vote() {
    let folder = folder();
    let exit =
        "    let h = att(tanh(linear(h, w) + e))\n    let n = n + 1\n    exit when all(n > abs(h[:, :, 0]) * 0 + 1)";
    let exit = exit.replace("h[:, :, 0]", "mean(h, axis = 2)");
    // A token that is not given, number 0, wants all steps.
    let slow = "    let h = att(tanh(linear(h, w) + e))\n    let n = n + 1\n    exit when all(n * mean(e * e, axis = 2) > LIMIT)";
    for core in [exit, slow.replace("LIMIT", "0.6")] {
        let text = model(&folder, &core);
        let artifact = compiled(&text);
        for length in [3, 5, 8] {
            let given = inputs(&ids(length), None);
            let (whole, padded) = (run(&text, &given, &[]), run(&artifact, &given, &[]));
            assert_eq!(whole["trips"].data, padded["trips"].data, "{length} positions of\n{core}");
            for name in ["y", "turned"] {
                assert_close(name, &padded[name], &whole[name], TOLERANCE);
            }
        }
    }
}

/// Each piece ends for itself, and is what the text gives of the sequence up to there, whose steps all stay in the caches.
#[test]
fn an_exit_in_pieces() {
    let folder = folder();
    let text = model(
        &folder,
        "    let h = att(tanh(linear(h, w) + e))\n    let n = n + 1\n    exit when all(n * (mean(e * e, axis = 2) + 0.2) > 1.5)",
    );
    let artifact = compiled(&text);
    let given = inputs(&ids(8), None);
    let steps: Vec<Tensors> = [&text, &artifact].map(|file| run(file, &given, &["--chunks", "5,1,2"])).into();
    for name in ["y", "turned", "trips"] {
        assert_close(name, &steps[1][name], &steps[0][name], TOLERANCE);
    }
    // The first piece is the first positions of a whole run of them.
    let first = run(&text, &inputs(&ids(5), None), &[]);
    assert_close("y", &steps[0]["y"].slice(1, 0, 5), &first["y"], TOLERANCE);
    assert_close("turned", &steps[0]["turned"].slice(1, 0, 5), &first["turned"], TOLERANCE);
}

#[test]
fn what_mixes_positions_is_refused_by_its_line() {
    let folder = folder();
    let text = model(&folder, "    let h = tanh(h + mean(h, axis = 1, keep = true))");
    let artifact = compiled(&text);
    let whole = inputs(&ids(8), None);
    assert_eq!(run(&text, &whole, &[]), run(&artifact, &whole, &[]));
    let reason = "line 12, column ";
    let errors = refused(&artifact, 5, &[]);
    assert!(errors.contains(reason) && errors.contains("a sum over positions"), "{errors}");
    assert!(errors.contains("--seq 5"), "{errors}");
    for file in [&text, &artifact] {
        let errors = refused(file, 8, &["--chunks", "4,4"]);
        assert!(errors.contains(reason) && errors.contains("in pieces"), "{errors}");
    }
}
