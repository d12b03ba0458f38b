# An image of the static program and nothing else. `tools/release` fills the folder that it is built from:
#
#   tools/release && docker build -t roost target/artifacts/image
FROM scratch
COPY root/ /
# All addresses of the container, and its health for HEALTHCHECK and orchestrators. Keys are yours to set:
# ROOST_CLIENT_TOKEN_HMAC_SECRET_KEY, ROOST_HTTP_API_KEY, or a file with ROOST_CONFIG.
ENV ROOST_HEALTH_ENABLED=true
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/roost", "health"]
ENTRYPOINT ["/roost"]
CMD ["serve"]
