"""A run in other people's pages: TensorBoard, Weights & Biases, Trackio, MLflow."""
