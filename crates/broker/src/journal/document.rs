//! What the journal keeps for others: text in the file, and until then whatever it is made of.

use std::fmt;
use std::sync::Arc;

/// A JSON document that only the driver reads. It is written out when it is needed, so that what the driver has anyway is not
/// there a second time as text.
#[derive(Clone)]
pub(crate) struct Document(Arc<dyn fmt::Display + Send + Sync>);

impl Document {
    /// What it displays is the document.
    pub(crate) fn of(content: Arc<impl fmt::Display + Send + Sync + 'static>) -> Self {
        Self(content)
    }
}

impl From<String> for Document {
    fn from(text: String) -> Self {
        Self(Arc::new(text))
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0)) || self.to_string() == other.to_string()
    }
}
