//! The table of ops, which every test that has to try them all walks.

/// Calls the macro named with every op of
/// [`TransformerOps`](crate::backend::TransformerOps), as `check: op op …;` with the check that tries
/// the op first.
///
/// An op that is missing here, or that no check of this name tries, fails a test: see `tests` below for
/// the first, `backend::cube::transpiled` and the program's `numeric::op_checks` for the second.
#[macro_export]
macro_rules! op_table {
    ($macro:ident) => {
        $macro! {
            embedding: embedding_forward embedding_backward;
            linear:
                linear_forward linear_residual_forward linear_backward_input
                linear_backward_input_add linear_backward_weight;
            rms_norm:
                rms_norm_forward rms_norm_backward
                residual_rms_norm_forward residual_rms_norm_backward;
            residual: residual_forward;
            rope: rope_forward rope_backward;
            swiglu: swiglu_forward swiglu_backward;
            attention: causal_attention_forward causal_attention_backward;
            head: head_cross_entropy_forward head_cross_entropy_backward head_logits;
            adamw: adamw_step adamw_step_with_copy sum_of_squares fill_zero;
            kv_cache: kv_cache_write;
        }
    };
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    macro_rules! names {
        ($($check:ident: $($op:ident)+;)+) => { [$($(stringify!($op)),+),+] };
    }

    #[test]
    fn the_table_has_every_op_of_the_trait() {
        let source = include_str!("mod.rs");
        let start = source.find("pub trait TransformerOps").expect("the trait is in mod.rs");
        let methods: Vec<&str> = source[start..]
            .lines()
            .take_while(|line| *line != "}")
            .filter_map(|line| line.strip_prefix("    fn ")?.split('(').next())
            .collect();
        let table = op_table!(names);
        assert!(methods.len() > 20, "{methods:?}");
        assert_eq!(table.len(), BTreeSet::from(table).len(), "an op is listed twice");
        assert_eq!(BTreeSet::from(table), BTreeSet::from_iter(methods));
    }
}
