//! Which function runs which part of a sequence.
use crate::Error;
use crate::artifact::Meta;
use crate::model::Model;
use rdc_ir::ArgRole;
use rdc_ir::positions::{Place, Positions};
use rdc_ir::program::{Entry, KvPolicy, Offset, Step};
use std::collections::BTreeMap;

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
    /// What its results have to do with positions.
    pub positions: Positions,
    /// The shapes of its outputs, by name, if they are not those of their buffers.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Which of the session's cache lists it has.
    pub caches: usize,
    /// Whether its loop writes keys and values, which later calls look up.
    pub caches_steps: bool,
}

impl Function {
    /// Whether it may be given padding.
    fn pads(&self) -> bool {
        self.positions.whole.is_none() && !self.positions.outputs.values().any(|&p| p == Place::Last)
    }
}

/// One call: rows `0..rows` of the function are positions `start..start + rows`; its further rows are padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub entry: usize,
    pub start: usize,
    pub rows: usize,
    pub chunk: usize,
}

/// The functions of a model; `caches` says which cache list an entry has.
pub(super) fn functions(model: &Model, caches: &[usize]) -> Vec<Function> {
    let program = model.program();
    let function = |(index, entry): (usize, &Entry)| {
        let shape_of = |wanted: fn(&ArgRole) -> bool| {
            let input = entry.inputs.iter().find(|i| wanted(&i.role))?;
            let shape = &entry.buffers[input.buffer].ty.shape;
            Some((*shape.first()?, *shape.get(1)?))
        };
        let shape = shape_of(|r| *r == ArgRole::Ids).or_else(|| shape_of(|r| matches!(r, ArgRole::State(_))));
        let (batch, chunk) = shape?;
        Some(Function {
            entry: index,
            readout: entry.name.split_once('.').map(|(_, readout)| readout.to_string()),
            batch,
            chunk,
            vocabulary: vocabulary(entry),
            positions: model.meta().positions.get(&entry.name).cloned().unwrap_or_default(),
            shapes: model.meta().shapes.get(&entry.name).cloned().unwrap_or_default(),
            caches: caches[index],
            caches_steps: entry.steps.iter().any(|s| matches!(s, Step::Loop(inner) if writes_slots(&inner.body))),
        })
    };
    let mut functions: Vec<Function> = program.entries.iter().enumerate().filter_map(function).collect();
    functions.sort_by_key(|f| std::cmp::Reverse(f.chunk));
    functions
}

/// Whether the slot of a cache that steps use follows the step.
fn writes_slots(steps: &[Step]) -> bool {
    steps.iter().any(|step| match step {
        Step::Launch(launch) => launch.args.iter().any(|a| matches!(a.offset, Offset::Slot { .. })),
        Step::Loop(inner) => writes_slots(&inner.body),
        Step::Copy { .. } | Step::Zero { .. } | Step::Barrier => false,
    })
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
    if meta.context > 0 && position + length > meta.context && functions.iter().any(|f| f.positions.whole.is_none()) {
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
    let alone = position == 0 && chunks.is_none_or(|c| c.len() == 1);
    if let Some(f) = functions.iter().find(|f| alone && f.chunk == length) {
        return Ok(vec![Call { entry: f.entry, start: 0, rows: length, chunk: length }]);
    }
    let (pieces, wholes): (Vec<&Function>, Vec<&Function>) =
        functions.iter().partition(|f| f.positions.whole.is_none());
    if let (true, Some(mixing)) = (pieces.is_empty(), wholes.iter().find_map(|f| f.positions.whole.as_ref())) {
        let why = format!("the numbers of this model depend on the whole sequence ({mixing})");
        return Err(Error::Input(match alone {
            true => format!(
                "{why}; it is compiled for sequences of {} positions, not of {length}: compile with --seq {length}",
                lengths(functions)
            ),
            false => format!("{why}, so a sequence cannot be fed in pieces"),
        }));
    }
    let mut calls = Vec::new();
    let mut start = position;
    for &piece in chunks.unwrap_or(&whole) {
        plan_piece(meta, &pieces, start, piece, chunks.is_some(), &mut calls)?;
        start += piece;
    }
    Ok(calls)
}

fn lengths(functions: &[&Function]) -> String {
    functions.iter().map(|f| f.chunk.to_string()).collect::<Vec<_>>().join(", ")
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
        // Padding has no say in what it is with: what mixes positions takes none, and its keys and values are forgotten. But it must
        // not go past the context, where there is no row of a table for it.
        let can_pad =
            |f: &&&Function| f.chunk > rest && f.pads() && (meta.context == 0 || start + f.chunk <= meta.context);
        let padded = functions.iter().rev().find(can_pad);
        let smaller = functions.iter().find(|f| f.chunk < rest);
        // A piece in several calls gives the same numbers only if later tokens find every step's keys of earlier ones.
        let split = if explicit && meta.kv != KvPolicy::Full { None } else { smaller };
        // A call costs about as much as an eighth of a padded one.
        let worth = |f: &&&Function| split.is_none() || rest * 8 >= f.chunk;
        let Some(function) = exact.or(padded.filter(worth)).or(split) else {
            return Err(Error::Input(format!(
                "a piece of {rest} positions at position {start} fits none of the compiled lengths ({}): compile with --seq {rest}",
                lengths(functions)
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
    use rdc_ir::Loc;
    use rdc_ir::positions::Mixing;

    fn function(entry: usize, chunk: usize) -> Function {
        Function {
            entry,
            readout: None,
            batch: 1,
            chunk,
            vocabulary: None,
            positions: Positions::default(),
            shapes: BTreeMap::new(),
            caches: 0,
            caches_steps: true,
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
    fn what_depends_on_the_whole_sequence_is_neither_padded_nor_cut() {
        let last = Positions { outputs: [("y".into(), Place::Last)].into(), ..Positions::default() };
        let last = Function { positions: last, ..function(0, 4) };
        let calls = plan(&meta(64, KvPolicy::Full), &[&last, &function(1, 1)], 0, 6, None).unwrap();
        assert_eq!(rows(&calls), [(0, 0, 4), (1, 4, 1), (1, 5, 1)]);
        let mixing = Mixing { loc: Loc { line: 7, col: 3 }, what: "a sum over positions".into() };
        let whole = Positions { whole: Some(mixing), ..Positions::default() };
        let only = Function { positions: whole, ..function(0, 4) };
        let meta = meta(64, KvPolicy::Full);
        let error = |position, length, chunks: Option<&[usize]>| {
            plan(&meta, &[&only], position, length, chunks).unwrap_err().to_string()
        };
        assert_eq!(rows(&plan(&meta, &[&only], 0, 4, None).unwrap()), [(0, 0, 4)]);
        assert_eq!(rows(&plan(&meta, &[&only], 0, 4, Some(&[4])).unwrap()), [(0, 0, 4)]);
        let message = error(0, 3, None);
        assert!(message.contains("line 7, column 3: a sum over positions") && message.contains("--seq 3"), "{message}");
        for message in [error(0, 8, Some(&[4, 4])), error(4, 4, None)] {
            assert!(message.contains("line 7") && message.contains("in pieces"), "{message}");
        }
        // Beside a function that mixes, one of another length that does not runs what it can.
        let calls = plan(&meta, &[&only, &function(1, 1)], 0, 2, None).unwrap();
        assert_eq!(rows(&calls), [(1, 0, 1), (1, 1, 1)]);
        assert!(plan(&meta, &[], 0, 3, None).is_err());
    }
}
