"""The data plane: index, epoch plan, reader, transforms, loader."""
