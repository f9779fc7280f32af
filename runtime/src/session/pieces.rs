//! Which function runs which part of a sequence.
use crate::Error;
use crate::artifact::Meta;
use crate::model::Model;
use rdc_ir::ArgRole;
use rdc_ir::program::{Entry, KvPolicy};

/// A function of the program, as a session sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Function {
    /// Index of the entry.
    pub entry: usize,
    /// The suffix of its name: its read-out, if it is not the default one.
    pub readout: Option<String>,
    /// Rows of a batch.
    pub batch: usize,
    /// Positions per call.
    pub chunk: usize,
    /// Ids are below this.
    pub vocabulary: Option<usize>,
    /// Whether it may be called at a position other than 0, so that a sequence can be fed in pieces.
    pub continues: bool,
    /// Names of outputs without a sequence axis.
    pub whole: Vec<String>,
    /// Whether some output may depend on all rows together, beyond those that count steps.
    pub mixes: bool,
}

/// One call: rows `0..rows` of the function are positions `start..start + rows`; its further rows are padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub entry: usize,
    pub start: usize,
    pub rows: usize,
    pub chunk: usize,
}

/// The functions of a model.
pub(super) fn functions(model: &Model) -> Vec<Function> {
    let program = model.program();
    let split = |entry: &Entry| match entry.name.split_once('.') {
        Some((base, readout)) => (base.to_string(), Some(readout.to_string())),
        None => (entry.name.clone(), None),
    };
    let names: Vec<_> = program.entries.iter().map(split).collect();
    let function = |(index, entry): (usize, &Entry)| {
        let shape_of = |wanted: fn(&ArgRole) -> bool| {
            let input = entry.inputs.iter().find(|i| wanted(&i.role))?;
            let shape = &entry.buffers[input.buffer].ty.shape;
            Some((*shape.first()?, *shape.get(1)?))
        };
        let shape = shape_of(|r| *r == ArgRole::Ids).or_else(|| shape_of(|r| matches!(r, ArgRole::State(_))));
        let (batch, chunk) = shape?;
        let readout = names[index].1.clone();
        let decodes = names.iter().any(|(base, suffix)| base == "decode" && *suffix == readout);
        Some(Function {
            entry: index,
            batch,
            chunk,
            vocabulary: vocabulary(entry),
            continues: decodes || entry.inputs.iter().any(|i| i.role == ArgRole::Cache),
            whole: entry.outputs.iter().filter(|o| o.sequence.is_none()).map(|o| o.name.clone()).collect(),
            mixes: entry.outputs.iter().any(|o| entry.buffers[o.buffer].ty.rank() > 0 && o.sequence.is_none()),
            readout,
        })
    };
    let mut functions: Vec<Function> = program.entries.iter().enumerate().filter_map(function).collect();
    functions.sort_by_key(|f| std::cmp::Reverse(f.chunk));
    functions
}

/// The suffix of the functions of a read-out.
pub(super) fn readout(meta: &Meta, wanted: Option<&str>) -> Result<Option<String>, Error> {
    match (wanted, meta.readouts.first()) {
        (None, _) => Ok(None),
        (Some(name), Some(first)) if first.name == name => Ok(None),
        (Some(name), _) if meta.readouts.iter().any(|r| r.name == name) => Ok(Some(name.to_string())),
        (Some(name), _) => {
            let names: Vec<&str> = meta.readouts.iter().map(|r| r.name.as_str()).collect();
            Err(Error::Input(format!("the model has no read-out `{name}`; it has {}", names.join(", "))))
        }
    }
}

/// Cuts a sequence into calls.
pub(super) fn plan(
    meta: &Meta,
    functions: &[&Function],
    position: usize,
    length: usize,
    chunks: Option<&[usize]>,
) -> Result<Vec<Call>, Error> {
    if meta.context > 0 && position + length > meta.context && functions.iter().any(|f| f.continues) {
        return Err(Error::Input(format!(
            "position {} is past the context of {} positions: compile with a larger --context",
            position + length - 1,
            meta.context
        )));
    }
    let whole = [length];
    if let Some(chunks) = chunks {
        let sum = chunks.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if sum != Some(length) || chunks.contains(&0) {
            return Err(Error::Input(format!(
                "--chunks {chunks:?} do not add up to the {length} positions of the input"
            )));
        }
    }
    let mut calls = Vec::new();
    let mut start = position;
    for &piece in chunks.unwrap_or(&whole) {
        plan_piece(meta, functions, start, piece, chunks.is_some(), &mut calls)?;
        start += piece;
    }
    let continues = |c: &Call| c.start == 0 || functions.iter().any(|f| f.entry == c.entry && f.continues);
    if calls.iter().all(continues) {
        Ok(calls)
    } else {
        Err(Error::Input(
            "this model has attention that is not causal, so its sequences cannot be fed in pieces".into(),
        ))
    }
}

fn plan_piece(
    meta: &Meta,
    functions: &[&Function],
    mut start: usize,
    piece: usize,
    explicit: bool,
    calls: &mut Vec<Call>,
) -> Result<(), Error> {
    let mut rest = piece;
    while rest > 0 {
        let exact = functions.iter().find(|f| f.chunk == rest);
        // Rows of padding write cache positions that later calls write again, and at most delay an early exit, which changes
        // nothing for rows that are done; but they would have a say in an output over all rows (or of the last), and must
        // not go past the context, where there is no row of a table for them.
        let can_pad = |f: &&&Function| {
            f.chunk > rest && f.continues && !f.mixes && (meta.context == 0 || start + f.chunk <= meta.context)
        };
        let padded = functions.iter().rev().find(can_pad);
        let smaller = functions.iter().find(|f| f.chunk < rest && f.continues);
        // A piece in several calls gives the same numbers only if later tokens find every step's keys of earlier ones.
        let split = if explicit && meta.kv != KvPolicy::Full { None } else { smaller };
        // A call costs about as much as an eighth of a padded one.
        let worth = |f: &&&Function| split.is_none() || rest * 8 >= f.chunk;
        let Some(function) = exact.or(padded.filter(worth)).or(split) else {
            let lengths: Vec<String> = functions.iter().map(|f| f.chunk.to_string()).collect();
            return Err(Error::Input(format!(
                "a piece of {rest} positions at position {start} fits none of the compiled lengths ({}): compile with --seq {rest}",
                lengths.join(", ")
            )));
        };
        let rows = rest.min(function.chunk);
        calls.push(Call { entry: function.entry, start, rows, chunk: function.chunk });
        (start, rest) = (start + rows, rest - rows);
    }
    Ok(())
}

/// What the ids of an entry are below, if that is known.
pub(crate) fn vocabulary(entry: &Entry) -> Option<usize> {
    entry.inputs.iter().find(|i| i.role == ArgRole::Ids)?.vocabulary
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(entry: usize, chunk: usize) -> Function {
        Function {
            entry,
            readout: None,
            batch: 1,
            chunk,
            vocabulary: None,
            continues: true,
            whole: Vec::new(),
            mixes: false,
        }
    }
    fn meta(context: usize, kv: KvPolicy) -> Meta {
        let mut meta = crate::exec::testing::meta(crate::exec::testing::program());
        (meta.context, meta.kv) = (context, kv);
        meta
    }
    fn rows(calls: &[Call]) -> Vec<(usize, usize, usize)> {
        calls.iter().map(|c| (c.entry, c.start, c.rows)).collect()
    }

    #[test]
    fn pieces_of_a_sequence() {
        let (prefill, decode) = (function(0, 16), function(1, 1));
        let functions = [&prefill, &decode];
        let full = meta(64, KvPolicy::Full);
        let plan_rows = |meta: &Meta, position, length, chunks: Option<&[usize]>| {
            plan(meta, &functions, position, length, chunks).map(|c| rows(&c)).map_err(|e| e.to_string())
        };
        assert_eq!(plan_rows(&full, 0, 16, None).unwrap(), [(0, 0, 16)]);
        assert_eq!(plan_rows(&full, 0, 39, None).unwrap(), [(0, 0, 16), (0, 16, 16), (0, 32, 7)]);
        assert_eq!(plan_rows(&full, 5, 1, None).unwrap(), [(1, 5, 1)]);
        assert_eq!(plan_rows(&full, 0, 8, Some(&[6, 1, 1])).unwrap(), [(0, 0, 6), (1, 6, 1), (1, 7, 1)]);
        // No room for padding below the context.
        assert_eq!(plan_rows(&full, 60, 3, None).unwrap(), [(1, 60, 1), (1, 61, 1), (1, 62, 1)]);
        assert!(plan_rows(&full, 60, 5, None).unwrap_err().contains("--context"));
        assert!(plan_rows(&full, 0, 5, Some(&[4])).unwrap_err().contains("--chunks"));
        assert!(plan_rows(&full, 0, 4, Some(&[4, 0])).unwrap_err().contains("--chunks"));
        // Shared slots: a piece must go in one call.
        let shared = meta(64, KvPolicy::Modulo(2));
        assert_eq!(plan_rows(&shared, 0, 8, Some(&[6, 2])).unwrap(), [(0, 0, 6), (0, 6, 2)]);
        assert!(plan_rows(&shared, 0, 20, Some(&[20])).unwrap_err().contains("--seq 20"));
        assert_eq!(plan_rows(&shared, 0, 20, None).unwrap(), [(0, 0, 16), (0, 16, 4)]);
    }

    #[test]
    fn mixed_rows_and_full_attention_are_not_padded() {
        let last = Function { mixes: true, ..function(0, 4) };
        let calls = plan(&meta(64, KvPolicy::Full), &[&last, &function(1, 1)], 0, 6, None).unwrap();
        assert_eq!(rows(&calls), [(0, 0, 4), (1, 4, 1), (1, 5, 1)]);
        let only = Function { continues: false, ..function(0, 4) };
        let meta = meta(64, KvPolicy::Full);
        assert_eq!(rows(&plan(&meta, &[&only], 0, 4, None).unwrap()), [(0, 0, 4)]);
        assert!(plan(&meta, &[&only], 0, 3, None).unwrap_err().to_string().contains("--seq 3"));
        assert!(plan(&meta, &[&only], 0, 8, Some(&[4, 4])).unwrap_err().to_string().contains("not causal"));
        assert!(plan(&meta, &[], 0, 3, None).is_err());
    }
}
