"""One quantized TFLite file for a device."""
