//! Objects to one flat position-independent image.
//!
//! All code sections come first, then all read-only data; relocations between them are resolved here, relative to the
//! place of use, so the image runs wherever it is mapped (at a page boundary), readable and executable. There is no
//! writable data and nothing external: a kernel that calls a library is an error.
use crate::Error;
use object::{
    Object, ObjectSection, ObjectSymbol, Relocation, RelocationFlags, RelocationTarget, SectionFlags, SectionIndex,
    SectionKind, elf,
};
use std::collections::BTreeMap;

/// Machine code of all kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeImage {
    /// Code and constants, to be mapped at a multiple of 4096, readable and executable.
    pub bytes: Vec<u8>,
    /// Where each kernel starts, in the order of the program's kernels.
    pub symbols: Vec<Symbol>,
}

/// The entry point of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The kernel's name.
    pub name: String,
    /// Byte offset in the image.
    pub offset: usize,
}

impl CodeImage {
    /// The offset of a kernel's entry point.
    pub fn offset(&self, name: &str) -> Option<usize> {
        self.symbols.iter().find(|s| s.name == name).map(|s| s.offset)
    }
}

struct Input<'a> {
    name: &'a str,
    file: object::File<'a>,
    /// Place of each section in the image, by section index.
    places: BTreeMap<usize, usize>,
}

impl Input<'_> {
    fn error(&self, message: String) -> Error {
        Error::Layout { kernel: self.name.into(), message }
    }
}

/// Lays out objects given as (kernel name, ELF object). Each must define its kernel's name.
pub fn layout<'a>(objects: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<CodeImage, Error> {
    let mut inputs = objects
        .map(|(name, bytes)| {
            let file = object::File::parse(bytes)
                .map_err(|e| Error::Layout { kernel: name.into(), message: format!("unreadable object: {e}") })?;
            Ok(Input { name, file, places: BTreeMap::new() })
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let mut bytes = Vec::new();
    for code in [true, false] {
        for input in &mut inputs {
            place_sections(input, code, &mut bytes)?;
        }
    }
    let mut symbols = Vec::new();
    for input in &inputs {
        for (section, place) in &input.places {
            let section =
                input.file.section_by_index(SectionIndex(*section)).map_err(|e| input.error(e.to_string()))?;
            for (offset, relocation) in section.relocations() {
                relocate(input, &mut bytes, place + offset as usize, &relocation)?;
            }
        }
        let symbol = input.file.symbols().find(|s| s.name() == Ok(input.name) && s.is_definition());
        let offset = match symbol {
            Some(symbol) => address(input, &symbol)?,
            None => return Err(input.error("the object does not define the kernel".into())),
        };
        symbols.push(Symbol { name: input.name.into(), offset });
    }
    Ok(CodeImage { bytes, symbols })
}

fn place_sections(input: &mut Input, code: bool, bytes: &mut Vec<u8>) -> Result<(), Error> {
    for section in input.file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        let name = section.name().unwrap_or_default();
        if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || section.size() == 0 || name == ".eh_frame" {
            continue;
        }
        if sh_flags & u64::from(elf::SHF_WRITE) != 0 {
            return Err(input.error(format!("section {name} is writable")));
        }
        if (section.kind() == SectionKind::Text) != code {
            continue;
        }
        let data = section.data().map_err(|e| input.error(e.to_string()))?;
        // Functions start a cache line, so that a kernel's speed does not depend on the kernels before it.
        let align = (section.align().max(1) as usize).max(if code { 64 } else { 1 });
        let place = bytes.len().next_multiple_of(align);
        bytes.resize(place, 0);
        bytes.extend_from_slice(data);
        input.places.insert(section.index().0, place);
    }
    Ok(())
}

/// Offset of a symbol in the image.
fn address<'a>(input: &Input, symbol: &impl ObjectSymbol<'a>) -> Result<usize, Error> {
    let place = symbol.section_index().and_then(|s| input.places.get(&s.0));
    match place {
        Some(place) => Ok(place + symbol.address() as usize),
        None => Err(input.error(format!("`{}` is not defined in the object", symbol.name().unwrap_or("?")))),
    }
}

fn relocate(input: &Input, bytes: &mut [u8], at: usize, relocation: &Relocation) -> Result<(), Error> {
    let target = match relocation.target() {
        RelocationTarget::Symbol(index) => {
            let symbol = input.file.symbol_by_index(index).map_err(|e| input.error(e.to_string()))?;
            address(input, &symbol)?
        }
        other => return Err(input.error(format!("relocation against {other:?}"))),
    };
    let RelocationFlags::Elf { r_type } = relocation.flags() else {
        return Err(input.error("relocation of another format than ELF".into()));
    };
    let value = target as i64 + relocation.addend();
    let relative = value - at as i64;
    let page = |v: i64| v >> 12;
    let range = |bits: u32, v: i64| {
        let limit = 1i64 << (bits - 1);
        if (-limit..limit).contains(&v) { Ok(v) } else { Err(input.error("relocation out of range".into())) }
    };
    let Some(field) = bytes.get_mut(at..at + 4) else {
        return Err(input.error("relocation outside its section".into()));
    };
    let word = u32::from_le_bytes([field[0], field[1], field[2], field[3]]);
    // The low 12 bits of an address in the imm12 field (bits 10..22) of an instruction that scales by its access size.
    let low12 = |scale: u32| word & !(0xfff << 10) | ((((value & 0xfff) >> scale) as u32) << 10);
    let patched = match (input.file.architecture(), r_type) {
        (object::Architecture::X86_64, elf::R_X86_64_PC32 | elf::R_X86_64_PLT32) => range(32, relative)? as u32,
        (object::Architecture::Aarch64, elf::R_AARCH64_PREL32) => range(32, relative)? as u32,
        (object::Architecture::Aarch64, elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26) => {
            word & !0x3ff_ffff | (range(26, relative >> 2)? as u32 & 0x3ff_ffff)
        }
        (object::Architecture::Aarch64, elf::R_AARCH64_ADR_PREL_PG_HI21) => {
            let pages = range(21, page(value) - page(at as i64))? as u32;
            word & !(3 << 29 | 0x7_ffff << 5) | (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5
        }
        (object::Architecture::Aarch64, elf::R_AARCH64_ADD_ABS_LO12_NC | elf::R_AARCH64_LDST8_ABS_LO12_NC) => low12(0),
        (object::Architecture::Aarch64, elf::R_AARCH64_LDST16_ABS_LO12_NC) => low12(1),
        (object::Architecture::Aarch64, elf::R_AARCH64_LDST32_ABS_LO12_NC) => low12(2),
        (object::Architecture::Aarch64, elf::R_AARCH64_LDST64_ABS_LO12_NC) => low12(3),
        (object::Architecture::Aarch64, elf::R_AARCH64_LDST128_ABS_LO12_NC) => low12(4),
        (architecture, r_type) => {
            return Err(input.error(format!("relocation {r_type} of {architecture:?} is not supported")));
        }
    };
    field.copy_from_slice(&patched.to_le_bytes());
    Ok(())
}
