"""Where faces come from besides thumbnails: whole pictures, video files, and boxes that another system has drawn."""
