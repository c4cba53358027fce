"""INT8 under guard: calibrate, judge, return layers to float, fine-tune."""
