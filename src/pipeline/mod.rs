//! The way of a model, by stage: [`front`] lowers a text, [`build`] makes a program of it, [`emit`] its machine code and
//! artifact; [`load`] opens an artifact and [`text`] goes all the way at once.
#[cfg(feature = "compiler")]
pub mod build;
#[cfg(feature = "compiler")]
pub mod emit;
#[cfg(feature = "compiler")]
pub mod front;
pub mod load;
#[cfg(feature = "compiler")]
pub mod text;
