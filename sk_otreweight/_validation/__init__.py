"""Every check of user input, and the message it gives."""

from sk_otreweight._validation.data import (
    check_cast,
    check_inputs_like,
    check_same_classes,
    check_two_classes,
    encode_labels,
)
from sk_otreweight._validation.meta import (
    MetaData,
    check_drawable,
    check_meta_arguments,
    check_meta_arrays,
    check_meta_columns,
    check_meta_mask,
    warn_missing_meta_classes,
)
from sk_otreweight._validation.nets import (
    check_finite_loss,
    check_losses,
    check_output_width,
)
from sk_otreweight._validation.parameters import (
    check_choice,
    check_count,
    check_real,
    check_reg,
    component_repr,
    resolve,
)
from sk_otreweight._validation.transport import (
    check_columns,
    check_cost_matrix,
    check_finite_cost,
    check_same_mass,
    check_transport_shapes,
)
from sk_otreweight._validation.warning import (
    warn_user,
)

__all__ = [
    "MetaData",
    "check_cast",
    "check_choice",
    "check_columns",
    "check_cost_matrix",
    "check_count",
    "check_drawable",
    "check_finite_cost",
    "check_finite_loss",
    "check_inputs_like",
    "check_losses",
    "check_meta_arguments",
    "check_meta_arrays",
    "check_meta_columns",
    "check_meta_mask",
    "check_output_width",
    "check_real",
    "check_reg",
    "check_same_classes",
    "check_same_mass",
    "check_transport_shapes",
    "check_two_classes",
    "component_repr",
    "encode_labels",
    "resolve",
    "warn_missing_meta_classes",
    "warn_user",
]
