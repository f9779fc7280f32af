//! Panels of packed weights: rows of stacked pieces, fetched for [`rdc_ir::packing`].
use super::{ParamSource, locate, read_whole_row};
use crate::Error;
use rdc_ir::DType;
use rdc_ir::packing::{Element, Packing, row_scale};
use rdc_ir::program::Piece;

/// A packed weight that is made panel by panel.
pub struct Packed<'a> {
    packing: Packing,
    dtype: DType,
    pieces: &'a [Piece],
    /// int8 only: the scale of every row.
    scales: Vec<f32>,
    params: &'a dyn ParamSource,
}

impl<'a> Packed<'a> {
    /// Checks that the parameters have the pieces; reads the rows' scales for int8. That the recipe makes a type is known
    /// ([`crate::validate::weight`]).
    pub fn new(
        dtype: DType,
        pieces: &'a [Piece],
        packing: Packing,
        params: &'a dyn ParamSource,
    ) -> Result<Packed<'a>, Error> {
        for piece in pieces {
            let columns = params.columns(&piece.param)?;
            if piece.cols.1 > columns {
                return Err(Error::Program(format!("parameter {} has only {columns} columns", piece.param)));
            }
        }
        let mut packed = Packed { packing, dtype, pieces, scales: Vec::new(), params };
        if dtype == DType::I8 {
            packed.scales = vec![0.0; packing.n];
            scales(pieces, 0, params, &mut packed.scales)?;
        }
        Ok(packed)
    }
    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.packing.panels()
    }
    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        self.packing.panel_elements() * self.dtype.bytes()
    }
    /// Makes the panels from `first` on that `out` has room for.
    pub fn fill(&self, first: usize, out: &mut [u8]) -> Result<(), Error> {
        let element = match self.dtype {
            DType::I8 => Element::I8(&self.scales),
            DType::BF16 => Element::BF16,
            _ => Element::F32,
        };
        let mut result = Ok(());
        let range = first..first + out.len() / self.panel_bytes();
        let row = |index: usize, buffer: &mut [f32]| {
            if result.is_ok() {
                result = self.read_row(index, buffer);
            }
        };
        self.packing.pack_panels(element, range, row, out);
        result
    }
    fn read_row(&self, index: usize, row: &mut [f32]) -> Result<(), Error> {
        let (piece, at) = locate(self.pieces, index)?;
        let columns = self.params.columns(&piece.param)?;
        self.params.read(&piece.param, at * columns + piece.cols.0, row)
    }
}

/// The int8 scales of the rows of stacked pieces from `first` on.
pub fn scales(pieces: &[Piece], first: usize, params: &dyn ParamSource, out: &mut [f32]) -> Result<(), Error> {
    let mut row = Vec::new();
    for (i, scale) in out.iter_mut().enumerate() {
        *scale = row_scale(read_whole_row(pieces, first + i, params, &mut row)?);
    }
    Ok(())
}
