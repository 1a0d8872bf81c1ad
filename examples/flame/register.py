"""What flame imports before it reads a config (`--experimental.custom_model_path`): makes `mixer` and `bdlru` known."""

import fla_bdlru  # noqa: F401
