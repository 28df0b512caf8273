//! skeleton
/// Guard
pub struct Space;
/// Full
#[derive(Debug, thiserror::Error)]
#[error("full")]
pub struct Full;
impl Space {
    /// New
    pub fn new(_dir: &std::path::Path) -> Self {
        Self
    }
    /// Check
    pub fn check(&self) -> Result<(), Full> {
        Ok(())
    }
}
