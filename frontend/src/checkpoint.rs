//! Matches a model's parameters with the tensors of a checkpoint, by names and shapes only.
use crate::diagnostic::Diagnostic;
use crate::names::nearest;
use rdc_ir::Module;
use std::collections::{HashMap, HashSet};

/// Which checkpoint tensor holds which parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// For every parameter of the module, in order, the index of its tensor in the list given.
    pub tensors: Vec<usize>,
    /// Tensors that nothing needs, less those that the text says to ignore: worth a note.
    pub unused: Vec<String>,
    /// Tensors that the text says to ignore.
    pub ignored: Vec<String>,
}

/// Finds the tensor of every parameter: by its name, else by one of its aliases (a tied head). `tensors` are names and
/// shapes; `ignored` are names or last parts of dotted names that the text says to ignore.
///
/// # Errors
/// All parameters that are missing (with the nearest unused name) or misshapen, at once.
pub fn match_tensors(
    module: &Module,
    ignored: &[String],
    tensors: &[(String, Vec<usize>)],
) -> Result<Matched, Vec<Diagnostic>> {
    let by_name: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, (n, _))| (n.as_str(), i)).collect();
    let mut errors = Vec::new();
    let mut matched = Matched::default();
    let mut used: HashSet<usize> = HashSet::new();
    let mut missing = Vec::new();
    for param in module.params.values() {
        let names = || std::iter::once(&param.name).chain(&param.aliases);
        used.extend(names().filter_map(|n| by_name.get(n.as_str())));
        let Some(&index) = names().find_map(|n| by_name.get(n.as_str())) else {
            missing.push(param);
            continue;
        };
        let (name, shape) = &tensors[index];
        if *shape == param.ty.shape {
            matched.tensors.push(index);
            continue;
        }
        let message = format!("tensor `{name}` has shape {shape:?}, the model needs {:?}", param.ty.shape);
        errors.push(
            Diagnostic::error("misshapen-tensor", message).help("do the sizes of the text and config.json agree?"),
        );
    }
    let free: Vec<&(String, Vec<usize>)> =
        tensors.iter().enumerate().filter(|(i, _)| !used.contains(i)).map(|(_, t)| t).collect();
    for param in missing {
        let message = format!("tensor `{}` {:?} is missing", param.name, param.ty.shape);
        let error = Diagnostic::error("missing-tensor", message);
        let same: Vec<&str> = free.iter().filter(|(_, s)| *s == param.ty.shape).map(|(n, _)| n.as_str()).collect();
        let near = nearest(&param.name, same).or_else(|| nearest(&param.name, free.iter().map(|(n, _)| n.as_str())));
        errors.push(match near {
            Some(near) => error.help(format!("the checkpoint has `{near}`")),
            None => error,
        });
    }
    for (name, _) in free {
        let known = ignored.iter().any(|i| name == i || name.ends_with(&format!(".{i}")));
        if known { matched.ignored.push(name.clone()) } else { matched.unused.push(name.clone()) }
    }
    if errors.is_empty() { Ok(matched) } else { Err(errors) }
}
