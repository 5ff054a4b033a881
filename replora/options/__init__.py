"""The options of classes and of command lines, read for messages and help; jsonargparse alone parses them."""
