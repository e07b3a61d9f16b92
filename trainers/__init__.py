"""Pure torch: heads, losses, encoders, weak teachers. Device, seeds and callbacks come in; nothing of Ray or MLflow."""
